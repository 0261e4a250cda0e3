"""Envelopes, each with one frame, in FAME's JSON.

Only the keys that we use are declared. The decoder ignores others, and a sentinel preserves them,
because it forwards the bytes of a message unchanged.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

import msgspec
from msgspec import Raw, Struct, field

from strongroom.errors import ProtocolError
from strongroom.messaging.address import new_id

MAX_MESSAGE: Final = 256 * 1024
"""Largest message in bytes. Naylence's peers refuse to send or receive a larger one."""


class ReplyType:
    """What the sender of an envelope expects: bits of `rtype`."""

    ACK = 1
    REPLY = 2
    STREAM = 4


class FlowFlag:
    """What a message means for its flow: bits of `flowFlags`."""

    ACK = 2
    RESET = 4


class NackCode:
    """Why a message was not delivered, or why its answer will not come: `code` of a DeliveryAck."""

    NO_ROUTE = "NO_ROUTE"
    CHILD_UNREACHABLE = "CHILD_UNREACHABLE"
    PEER_UNREACHABLE = "PEER_UNREACHABLE"
    CONNECTOR_CLOSED = "ROUTE_CONNECTOR_CLOSED"
    CALL_INTERRUPTED = "CALL_INTERRUPTED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    STREAM_CLOSED = "STREAM_CLOSED"
    STREAM_STALLED = "STREAM_STALLED"


class _Frame(Struct, tag_field="type", rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """Base of all frames. The name of a subclass is its `type` on the wire."""


class _Ack(_Frame):
    ok: bool
    code: str | None = None
    reason: str | None = None
    ref_id: str | None = None


class NodeAttach(_Frame):
    """The first message of a child on a link."""

    system_id: str
    instance_id: str | None = None
    origin_type: str | None = None
    accepted_logicals: list[str] | None = None
    capabilities: list[str] | None = None


class NodeAttachAck(_Ack):
    """The sentinel's answer: the child's path, and the epoch during which its names are kept."""

    target_system_id: str | None = None
    assigned_path: str | None = None
    target_physical_path: str | None = None
    routing_epoch: str | None = None


class AddressBind(_Frame):
    """Asks the sentinel to route `address` to the sender."""

    address: str


class AddressBindAck(_Ack):
    """Answers AddressBind."""

    address: str | None = None


class AddressUnbind(_Frame):
    """Asks the sentinel to stop routing `address` to the sender."""

    address: str


class AddressUnbindAck(_Ack):
    """Answers AddressUnbind."""

    address: str | None = None


class CapabilityAdvertise(_Frame):
    """Says that the agent at `address` has these capabilities."""

    capabilities: list[str]
    address: str


class CapabilityAdvertiseAck(_Ack):
    """Answers CapabilityAdvertise."""

    capabilities: list[str] | None = None
    address: str | None = None


class CapabilityWithdraw(_Frame):
    """Says that the agent at `address` no longer has these capabilities."""

    capabilities: list[str]
    address: str


class CapabilityWithdrawAck(_Ack):
    """Answers CapabilityWithdraw."""

    capabilities: list[str] | None = None
    address: str | None = None


class NodeHeartbeat(_Frame):
    """Says that the child is alive."""


class NodeHeartbeatAck(_Ack):
    """Says that the sentinel is alive, and its routing epoch."""

    routing_epoch: str | None = None


class Data(_Frame):
    """A request, a reply or a plain message: any JSON."""

    payload: Raw = field(default_factory=lambda: Raw(b"null"))


class DeliveryAck(_Ack):
    """Says whether an envelope was delivered."""


class CreditUpdate(_Frame):
    """Allows the receiver to send `credits` more messages on the flow."""

    flow_id: str
    credits: int


Frame = (
    NodeAttach
    | NodeAttachAck
    | AddressBind
    | AddressBindAck
    | AddressUnbind
    | AddressUnbindAck
    | CapabilityAdvertise
    | CapabilityAdvertiseAck
    | CapabilityWithdraw
    | CapabilityWithdrawAck
    | NodeHeartbeat
    | NodeHeartbeatAck
    | Data
    | DeliveryAck
    | CreditUpdate
)
ControlAck = (
    NodeAttachAck
    | AddressBindAck
    | AddressUnbindAck
    | CapabilityAdvertiseAck
    | CapabilityWithdrawAck
    | NodeHeartbeatAck
)


ROUTED: Final = (Data, DeliveryAck)
"""Frames that are for some node. All others are for the other end of a link."""


class Envelope(Struct, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """A frame, with what is needed to route it and its answer."""

    id: str = field(default_factory=new_id)
    sid: str | None = None
    trace_id: str | None = None
    to: str | None = None
    capabilities: list[str] | None = None
    reply_to: str | None = None
    rtype: int = 0
    corr_id: str | None = None
    flow_id: str | None = None
    flow_flags: int = 0
    frame: Frame


class _FrameType(Struct):
    type: str


class _Unknown(Struct):
    frame: _FrameType


_KNOWN = frozenset(kind.__name__ for kind in Frame.__args__)
current_trace: ContextVar[str | None] = ContextVar("strongroom_trace", default=None)
"""The trace of the message that is being handled, which what is sent meanwhile belongs to."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
_unknown_decoder = msgspec.json.Decoder(_Unknown)

encode = _encoder.encode
"""Encode an envelope as JSON bytes."""


def decode(data: bytes) -> Envelope | None:
    """Read an envelope. None means that its frame has an unknown type and is to be skipped.

    Raises:
        ProtocolError: The bytes are not an envelope.
    """
    try:
        if not data.isascii():
            data.decode()  # a string that is only passed on is not checked by the decoder
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        if _is_unknown(data):
            return None
        raise ProtocolError(f"Not an envelope: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"Not an envelope: {error}") from None


def _is_unknown(data: bytes) -> bool:
    try:
        return _unknown_decoder.decode(data).frame.type not in _KNOWN
    except (msgspec.MsgspecError, RecursionError):
        return False
