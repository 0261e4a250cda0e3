"""What travels: envelopes with one frame each, as FAME's JSON.

Only the keys that we use are declared. Others are ignored here, and kept by a sentinel, which
forwards the bytes of a message as they came.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct, field

from strongroom.errors import ProtocolError
from strongroom.messaging.address import new_id

MAX_MESSAGE: Final = 256 * 1024
"""The largest message, in bytes: real peers refuse to send or receive a larger one."""


class ReplyType:
    """What the sender of an envelope expects: bits of `rtype`."""

    NONE = 0
    ACK = 1
    REPLY = 2
    STREAM = 4


class FlowFlag:
    """Hints on a flow's life: bits of `flowFlags`."""

    SYN = 1
    ACK = 2
    RESET = 4


class _Frame(Struct, tag_field="type", rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """The base of frames; a subclass's name is its `type` on the wire."""


class _Ack(_Frame):
    ok: bool
    code: str | None = None
    reason: str | None = None
    ref_id: str | None = None


class NodeAttach(_Frame):
    """A child's first message on a link."""

    system_id: str
    instance_id: str | None = None
    origin_type: str | None = None
    accepted_logicals: list[str] | None = None
    capabilities: list[str] | None = None


class NodeAttachAck(_Ack):
    """The sentinel's answer: the child's path, and the epoch for which its binds are kept."""

    target_system_id: str | None = None
    assigned_path: str | None = None
    target_physical_path: str | None = None
    routing_epoch: str | None = None
    expires_at: str | None = None


class AddressBind(_Frame):
    """Route `address` to me."""

    address: str


class AddressBindAck(_Ack):
    """Answers AddressBind."""

    address: str | None = None


class AddressUnbind(_Frame):
    """No longer route `address` to me."""

    address: str


class AddressUnbindAck(_Ack):
    """Answers AddressUnbind."""

    address: str | None = None


class CapabilityAdvertise(_Frame):
    """`address` can do `capabilities`."""

    capabilities: list[str]
    address: str


class CapabilityAdvertiseAck(_Ack):
    """Answers CapabilityAdvertise."""

    capabilities: list[str] | None = None
    address: str | None = None


class CapabilityWithdraw(_Frame):
    """`address` can no longer do `capabilities`."""

    capabilities: list[str]
    address: str


class CapabilityWithdrawAck(_Ack):
    """Answers CapabilityWithdraw."""

    capabilities: list[str] | None = None
    address: str | None = None


class NodeHeartbeat(_Frame):
    """I am alive."""


class NodeHeartbeatAck(_Ack):
    """So am I, and this is my epoch."""

    routing_epoch: str | None = None


class Data(_Frame):
    """A request, a reply, or a plain message: any JSON."""

    payload: Raw = field(default_factory=lambda: Raw(b"null"))


class DeliveryAck(_Ack):
    """An envelope was delivered (`ok`), or was not."""


class CreditUpdate(_Frame):
    """So many more messages may be sent on the flow."""

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


class Envelope(Struct, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """A frame, and what is needed to bring it somewhere and its answer back."""

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
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
_unknown_decoder = msgspec.json.Decoder(_Unknown)

encode = _encoder.encode
"""The bytes of an envelope."""


def decode(data: bytes) -> Envelope | None:
    """Read an envelope; None if its frame is of a type that we do not know, to be skipped.

    Raises:
        ProtocolError: The bytes are no envelope.
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
