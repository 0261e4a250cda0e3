"""JSON-RPC over Data frames: the shapes of calls and answers, and what each failure is called."""

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
from strongroom.messaging.envelope import DeliveryAck

NULL = b"null"
STREAM_CLOSED = "STREAM_CLOSED"
STREAM_STALLED = "STREAM_STALLED"
AWAY = {"CHILD_UNREACHABLE", "PEER_UNREACHABLE", "ROUTE_CONNECTOR_CLOSED", "CALL_INTERRUPTED"}
"""Codes of nacks for a receiver that exists and is not there now."""
CALL_INTERRUPTED = "CALL_INTERRUPTED"

_ERROR_CODES: dict[type[CallError], int] = {
    OperationFailed: -32603,
    InvalidArguments: -32602,
    UnknownOperation: -32601,
}
_CODE_ERRORS = {code: kind for kind, code in _ERROR_CODES.items()}
_NACKS: dict[str | None, type[FabricError]] = {
    "NO_ROUTE": NoRoute,
    "CHILD_UNREACHABLE": NoRoute,
    "PEER_UNREACHABLE": NoRoute,
    "ROUTE_CONNECTOR_CLOSED": CallInterrupted,  # the request was sent into a closing socket
    CALL_INTERRUPTED: CallInterrupted,
    STREAM_STALLED: StreamStalled,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
}


class Request(Struct, tag_field="jsonrpc", tag="2.0", gc=False):
    """A call."""

    method: str
    params: Raw
    id: str | int | None = None


class ErrorDetail(Struct, omit_defaults=True, gc=False):
    """Why a call gave no result."""

    code: int = 0
    message: str = ""
    data: Any = None


class Response(Struct, tag_field="jsonrpc", tag="2.0", omit_defaults=True, gc=False):
    """A result, one item of a stream, an error, or, when it holds nothing, None and the end."""

    id: str | int | None = None
    result: Raw | UnsetType = UNSET
    error: ErrorDetail | None = None

    def value(self) -> Raw | None:
        """The result as JSON; None for none.

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
    """Who is called: an address, or whoever has all of `capabilities`."""

    address: str | None = None
    capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.address or f"Anyone who can {', '.join(self.capabilities)}"


class Handler(Protocol):
    """What answers at an address. Values are JSON, encoded."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What it can do, by which callers may find it."""

    def invoke(self, method: str, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin an operation: one value to await, or several to iterate.

        Raises:
            UnknownOperation: It has no such operation.
            InvalidArguments: `params` do not fit.
        """

    async def receive(self, payload: Raw) -> None:
        """Take a plain message."""


def describe(error: Exception) -> ErrorDetail:
    """What the caller is told of an operation that raised: its type and message, no traceback."""
    return ErrorDetail(-32603, str(error), {"type": type(error).__name__})


def describe_refusal(error: CallError) -> ErrorDetail:
    """What the caller is told of an operation that was not begun."""
    return ErrorDetail(_ERROR_CODES.get(type(error), -32603), str(error), error.data)


def nack_error(nack: DeliveryAck) -> FabricError:
    """The error of a message that was not delivered, or whose answer will not come."""
    reason = nack.reason or f"The message was not delivered ({nack.code})."
    kind = _NACKS.get(nack.code, CallError)
    return kind(reason, code=nack.code) if issubclass(kind, CallError) else kind(reason)
