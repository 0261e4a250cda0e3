"""Envelopes, each with one frame, in FAME's JSON.

Only the keys that we use are declared. The decoder ignores others, and a sentinel preserves them,
because it forwards the bytes of a message unchanged.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct, field

from strongroom.errors import ProtocolError
from strongroom.messaging.address import MAX_ADDRESS, new_id
from strongroom.messaging.depth import MAX_DEPTH, is_too_deep

MAX_MESSAGE: Final = 256 * 1024
"""Largest message in bytes. Naylence's peers refuse to send or receive a larger one."""

MAX_NAME: Final = 256
"""Largest number of characters of an id, and of the name of a capability."""
MAX_CAPABILITIES: Final = 64
"""Largest number of capabilities of one address, and of those that a message asks for."""

Name = Annotated[str, Meta(max_length=MAX_NAME)]
Place = Annotated[str, Meta(max_length=MAX_ADDRESS)]
Names = Annotated[list[Name], Meta(max_length=MAX_CAPABILITIES)]


class ReplyType:
    """What the sender of an envelope expects: bits of `rtype`."""

    ACK = 1
    REPLY = 2
    STREAM = 4
    CALL = REPLY | STREAM


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
    BUSY = "BUSY"
    NODE_LEAVING = "NODE_LEAVING"
    SET_ASIDE = "SET_ASIDE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    STREAM_CLOSED = "STREAM_CLOSED"
    STREAM_STALLED = "STREAM_STALLED"


class _Frame(Struct, tag_field="type", rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """Base of all frames. The name of a subclass is its `type` on the wire."""


class _Ack(_Frame):
    ok: bool
    code: Name | None = None
    reason: str | None = None
    ref_id: Name | None = None


class NodeAttach(_Frame):
    """The first message of a child on a link."""

    system_id: Name
    instance_id: Name | None = None
    origin_type: Name | None = None
    accepted_logicals: list[str] | None = None


class NodeAttachAck(_Ack):
    """The sentinel's answer: the child's path, and the epoch during which its names are kept."""

    target_system_id: Name | None = None
    assigned_path: Place | None = None
    target_physical_path: Place | None = None
    routing_epoch: Name | None = None


class AddressBind(_Frame):
    """Asks the sentinel to route `address` to the sender."""

    address: Place


class AddressBindAck(_Ack):
    """Answers AddressBind."""

    address: Place | None = None


class AddressUnbind(_Frame):
    """Asks the sentinel to stop routing `address` to the sender."""

    address: Place


class AddressUnbindAck(_Ack):
    """Answers AddressUnbind."""

    address: Place | None = None


class CapabilityAdvertise(_Frame):
    """Says that the agent at `address` has these capabilities."""

    capabilities: Names
    address: Place


class CapabilityAdvertiseAck(_Ack):
    """Answers CapabilityAdvertise."""

    capabilities: Names | None = None
    address: Place | None = None


class CapabilityWithdraw(_Frame):
    """Says that the agent at `address` no longer has these capabilities."""

    capabilities: Names
    address: Place


class CapabilityWithdrawAck(_Ack):
    """Answers CapabilityWithdraw."""

    capabilities: Names | None = None
    address: Place | None = None


class NodeHeartbeat(_Frame):
    """Says that the child is alive."""


class NodeHeartbeatAck(_Ack):
    """Says that the sentinel is alive, and its routing epoch."""

    routing_epoch: Name | None = None


class Data(_Frame):
    """A request, a reply or a plain message: any JSON."""

    payload: Raw = field(default_factory=lambda: Raw(b"null"))


class DeliveryAck(_Ack):
    """Says whether an envelope was delivered."""


class CreditUpdate(_Frame):
    """Allows the receiver to send `credits` more messages on the flow."""

    flow_id: Name
    credits: int


class Unknown(_Frame):
    """A frame of a type that we do not know."""


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
    | Unknown
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

    id: Name = field(default_factory=new_id)
    sid: Name | None = None
    trace_id: Name | None = None
    to: Place | None = None
    capabilities: Names | None = None
    reply_to: Place | None = None
    rtype: int = 0
    corr_id: Name | None = None
    flow_id: Name | None = None
    flow_flags: int = 0
    frame: Frame


class _FrameType(Struct):
    type: str


class _WithAnyFrame(Struct, rename="camel"):
    frame: _FrameType
    flow_id: Name | None = None


_KNOWN = frozenset(kind.__name__ for kind in Frame.__args__)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
_read_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_type_decoder = msgspec.json.Decoder(_WithAnyFrame)

encode = _encoder.encode
"""Encode an envelope as JSON bytes."""


def decode(data: bytes) -> Envelope:
    """Read an envelope. Of one whose frame has an unknown type, only the flow is read.

    Raises:
        ProtocolError: The bytes are not an envelope.
    """
    try:
        if not data.isascii():
            data.decode()  # a string that is only passed on is not checked by the decoder
        envelope = _decoder.decode(data)
    except msgspec.ValidationError as error:
        unknown = _with_unknown_frame(data)
        if unknown is None:
            raise ProtocolError(f"Not an envelope: {error}") from None
        return unknown
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"Not an envelope: {error}") from None
    openings = data.count(b"{") + data.count(b"[")
    if openings > MAX_DEPTH:
        _check_depth(data, envelope.frame, openings)
    return envelope


def _check_depth(data: bytes, frame: Frame, openings: int) -> None:
    """Refuse fields that are nested too deeply, but for the payload: that is for its reader."""
    payload = bytes(frame.payload) if isinstance(frame, Data) else b""
    if openings - payload.count(b"{") - payload.count(b"[") <= MAX_DEPTH:
        return
    fields = _read_fields(data)
    fields_of_frame = _read_fields(fields.pop("frame"))
    if isinstance(frame, Data):
        fields_of_frame.pop("payload", None)
    if any(is_too_deep(bytes(each)) for each in chain(fields.values(), fields_of_frame.values())):
        raise ProtocolError(f"Not an envelope: a field is nested more than {MAX_DEPTH} levels deep")


def _with_unknown_frame(data: bytes) -> Envelope | None:
    try:
        envelope = _type_decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if envelope.frame.type in _KNOWN:
        return None
    return Envelope(flow_id=envelope.flow_id, frame=Unknown())
