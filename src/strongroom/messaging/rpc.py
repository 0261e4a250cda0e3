"""JSON-RPC over Data frames: requests, responses, and how errors travel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from strongroom.errors import (
    CallError,
    CallInterrupted,
    FabricError,
    InvalidArguments,
    MessageTooLarge,
    NoRoute,
    OperationFailed,
    StreamStalled,
    UnknownOperation,
)
from strongroom.messaging.envelope import DeliveryAck, NackCode

NULL = b"null"

_OPERATION_FAILED = -32603
_ERROR_CODES: dict[type[CallError], int] = {
    OperationFailed: _OPERATION_FAILED,
    InvalidArguments: -32602,
    UnknownOperation: -32601,
}
_CODE_ERRORS = {code: kind for kind, code in _ERROR_CODES.items()}
_NACK_ERRORS: dict[str | None, type[FabricError]] = {
    NackCode.NO_ROUTE: NoRoute,
    NackCode.CHILD_UNREACHABLE: NoRoute,
    NackCode.PEER_UNREACHABLE: NoRoute,
    NackCode.CONNECTOR_CLOSED: CallInterrupted,  # the request was sent into a closing socket
    NackCode.CALL_INTERRUPTED: CallInterrupted,
    NackCode.STREAM_STALLED: StreamStalled,
    NackCode.MESSAGE_TOO_LARGE: MessageTooLarge,
}


class Request(Struct, tag_field="jsonrpc", tag="2.0", gc=False):
    """A call."""

    method: str
    params: Raw
    id: str | int | None = None


class ErrorDetail(Struct, omit_defaults=True, gc=False):
    """Why a call has no result."""

    code: int = 0
    message: str = ""
    data: Any = None


class Response(Struct, tag_field="jsonrpc", tag="2.0", omit_defaults=True, gc=False):
    """A result, an item of a stream, or an error. With none of them: None, or the stream's end."""

    id: str | int | None = None
    result: Raw | UnsetType = UNSET
    error: ErrorDetail | None = None

    def value(self) -> Raw | None:
        """The result as JSON, or None if there is none.

        Raises:
            CallError: The operation failed; the leaf says how.
        """
        if self.error is not None:
            kind = _CODE_ERRORS.get(self.error.code, OperationFailed)
            raise kind(self.error.message, code=self.error.code, data=self.error.data)
        return None if self.result is UNSET or bytes(self.result) == NULL else self.result


encode = msgspec.json.Encoder().encode
read_request = msgspec.json.Decoder(Request).decode
read_response = msgspec.json.Decoder(Response).decode


class Target(Struct, frozen=True):
    """The receiver of a call: an address, or any agent that has all of `capabilities`."""

    address: str | None = None
    capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.address or f"Any agent with {', '.join(self.capabilities)}"


class Handler(Protocol):
    """What answers at an address. Values are encoded JSON."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What it can do. Callers may find it by these instead of by its address."""

    def invoke(self, method: str, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin an operation: returns one value to await, or several to iterate.

        Raises:
            UnknownOperation: There is no such operation.
            InvalidArguments: `params` do not fit the operation.
        """

    async def receive(self, payload: Raw) -> None:
        """Take a plain message."""


def describe(error: Exception) -> ErrorDetail:
    """What the caller learns of an operation that raised: type and message, no traceback."""
    return ErrorDetail(_OPERATION_FAILED, str(error), {"type": type(error).__name__})


def describe_refusal(error: CallError) -> ErrorDetail:
    """What the caller learns of an operation that was not begun."""
    return ErrorDetail(_ERROR_CODES.get(type(error), _OPERATION_FAILED), str(error), error.data)


def nack_error(nack: DeliveryAck) -> FabricError:
    """The error for a message that was not delivered, or whose answer will not come."""
    reason = nack.reason or f"The message was not delivered ({nack.code})."
    kind = _NACK_ERRORS.get(nack.code, CallError)
    return kind(reason, code=nack.code) if issubclass(kind, CallError) else kind(reason)
