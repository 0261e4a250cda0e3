"""JSON-RPC over Data frames: requests, responses, and how errors travel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from strongroom.errors import (
    AgentError,
    Busy,
    CallError,
    CallInterrupted,
    Conflict,
    DuplicateTask,
    FabricError,
    InvalidArguments,
    InvalidData,
    InvalidTask,
    MessageTooLarge,
    NoDataFound,
    NoRoute,
    OperationFailed,
    PushNotificationNotSupported,
    RateLimitExceeded,
    StreamStalled,
    TaskFailed,
    TaskNotCancelable,
    TaskNotFound,
    Unauthorized,
    UnknownOperation,
    UnsupportedOperation,
)
from strongroom.messaging.envelope import DeliveryAck, NackCode, Name

NULL = b"null"
MAX_ERROR_CHARACTERS = 4000
"""An error's message is cut to this length, so that it fits into an answer."""

OPERATION_FAILED = -32603
INVALID_REQUEST = -32600
_ERROR_CODES: dict[type[CallError], int] = {
    OperationFailed: OPERATION_FAILED,
    InvalidArguments: -32602,
    UnknownOperation: -32601,
}
_AGENT_ERROR_CODES: dict[type[AgentError], int] = {
    TaskFailed: -32000,
    AgentError: -32000,
    TaskNotFound: -32001,
    TaskNotCancelable: -32002,
    PushNotificationNotSupported: -32003,
    UnsupportedOperation: -32004,
    RateLimitExceeded: -32029,
    Unauthorized: INVALID_REQUEST,
    InvalidTask: -32602,
    DuplicateTask: -32602,
    NoDataFound: -32602,
    Conflict: -32602,
    InvalidData: -32602,
}
"""Errors that an agent may raise anywhere. Their class travels in `data`, as codes are shared."""
_AGENT_ERRORS = {kind.__name__: kind for kind in _AGENT_ERROR_CODES}
_CODE_ERRORS: dict[int, type[CallError]] = {
    **{code: kind for kind, code in _AGENT_ERROR_CODES.items() if code != INVALID_REQUEST},
    **{code: kind for kind, code in _ERROR_CODES.items()},
}
_NACK_ERRORS: dict[str | None, type[FabricError]] = {
    NackCode.NO_ROUTE: NoRoute,
    NackCode.CHILD_UNREACHABLE: NoRoute,
    NackCode.PEER_UNREACHABLE: NoRoute,
    NackCode.CONNECTOR_CLOSED: CallInterrupted,  # the request was sent into a closing socket
    NackCode.CALL_INTERRUPTED: CallInterrupted,
    NackCode.BUSY: Busy,
    NackCode.NODE_LEAVING: NoRoute,
    NackCode.SET_ASIDE: CallInterrupted,
    NackCode.STREAM_STALLED: StreamStalled,
    NackCode.MESSAGE_TOO_LARGE: MessageTooLarge,
}


Id = Name | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Request(Struct, tag_field="jsonrpc", tag="2.0", gc=False):
    """A call."""

    method: str
    params: Raw = Raw(b"{}")
    id: Id | None = None


class ErrorDetail(Struct, omit_defaults=True, gc=False):
    """Why a call has no result."""

    code: int = 0
    message: str = ""
    data: Any = None

    def kind(self) -> type[CallError]:
        """The class of error that it is at the caller."""
        name = self.data.get("type") if isinstance(self.data, dict) else None
        named = _AGENT_ERRORS.get(name) if isinstance(name, str) else None
        if named is not None and _AGENT_ERROR_CODES[named] == self.code:
            return named
        return _CODE_ERRORS.get(self.code, OperationFailed)


class Response(Struct, tag_field="jsonrpc", tag="2.0", omit_defaults=True, gc=False):
    """A result, an item of a stream, or an error. With none of them: None, or the stream's end."""

    id: str | int | None = None
    result: Raw | UnsetType = UNSET
    error: ErrorDetail | None = None

    def value(self, method: str = "") -> Raw | None:
        """The result as JSON, or None if there is none.

        Args:
            method: The operation's name, to be named in errors.

        Raises:
            CallError: The operation failed; the leaf says how.
        """
        if self.error is not None:
            kind = self.error.kind()
            text = self.error.message
            if kind is OperationFailed and method and f"{method}()" not in text:
                text = f"{method}() failed: {text}"
            raise kind(text, code=self.error.code, data=self.error.data)
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


def describe(error: BaseException, method: str, *, has_begun: bool) -> ErrorDetail:
    """What the caller learns of whatever left a handler: type and message, no traceback.

    Args:
        error: What was raised.
        method: The operation's name, which stands in for a message that is missing.
        has_begun: The operation was running. If it was not, its arguments or its name were wrong.
    """
    try:
        return _described(error, method, has_begun=has_begun)
    except BaseException:  # noqa: BLE001 - the exception is of a class of the user's
        text = f"{method}() raised an exception that cannot be read."
        return ErrorDetail(OPERATION_FAILED, text, {"type": "Exception"})


def _described(error: BaseException, method: str, *, has_begun: bool) -> ErrorDetail:
    if isinstance(error, AgentError):
        known = next(each for each in type(error).__mro__ if each in _AGENT_ERROR_CODES)
        name = known.__name__
        text = _cut(getattr(error, "what", "")) or f"{method}() raised {name} without a message."
        return ErrorDetail(_AGENT_ERROR_CODES[known], text, {"type": name})
    if not has_begun and isinstance(error, CallError):
        code = _ERROR_CODES.get(type(error), OPERATION_FAILED)
        return ErrorDetail(code, _cut(error.what), error.data)
    kind = _cut(type(error).__name__)
    return ErrorDetail(
        OPERATION_FAILED, _message(error, f"{method}() raised {kind}"), {"type": kind}
    )


def without_message(error: ErrorDetail, method: str) -> ErrorDetail:
    """The same error with no more of what an operation raised than its type.

    Errors in a call's arguments are left as they are: their messages are ours.
    """
    if error.code != OPERATION_FAILED or not isinstance(error.data, dict):
        return error
    text = f"{method}() raised {error.data['type']}."
    return ErrorDetail(OPERATION_FAILED, text, error.data)


def _message(error: BaseException, what: str) -> str:
    try:
        text = str.__str__(str(error))  # a plain string, not one of a class of the user's
    except BaseException:  # noqa: BLE001 - it is the user's code
        return _cut(f"{what}, whose message cannot be read.")
    if not isinstance(error, Exception):
        return _cut(f"{what}: {text}" if text else f"{what}.")
    return _cut(text) if text else _cut(f"{what} without a message.")


def _cut(text: str) -> str:
    clean = str.encode(text, errors="backslashreplace").decode()
    too_long = len(clean) > MAX_ERROR_CHARACTERS
    return f"{clean[: MAX_ERROR_CHARACTERS - 1]}…" if too_long else clean


def nack_error(nack: DeliveryAck) -> FabricError:
    """The error for a message that was not delivered, or whose answer will not come."""
    reason = nack.reason or f"The message was not delivered ({nack.code})."
    kind = _NACK_ERRORS.get(nack.code, CallError)
    return kind(reason, code=nack.code) if issubclass(kind, CallError) else kind(reason)
