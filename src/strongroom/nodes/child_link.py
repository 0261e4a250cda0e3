"""The link of one child of a sentinel, and the calls under way to the child."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from strongroom.errors import CallError
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, ReplyType
from strongroom.messaging.flow import Channel, Release, ends_flow
from strongroom.messaging.link import Link
from strongroom.messaging.rpc import read_response

MAX_CALLS_UNDER_WAY = 65536


class ChildEvents(Protocol):
    """Receives what children send, and learns when one is gone."""

    def route(self, source: ChildLink, envelope: Envelope, data: bytes, release: Release) -> None:
        """A message for another node, or for the sentinel's own."""

    def control(self, child: ChildLink, request: Envelope) -> None:
        """A control frame."""

    def on_child_lost(self, child: ChildLink, reason: str) -> None:
        """The link is gone."""


class CallUnderWay(NamedTuple):
    """What is needed to tell a caller that its call was cut off."""

    request_id: str
    reply_to: str
    trace_id: str | None
    is_stream: bool


class ChildLink:
    """The link of one child, and the calls under way to it."""

    def __init__(self, children: ChildEvents, link: Link) -> None:
        self._children = children
        self.link = link
        self.system_id: str | None = None
        self.under_way: dict[str, CallUnderWay] = {}
        self.channel = Channel(link, self)

    def on_attached(self, system_id: str) -> None:
        """The handshake has succeeded."""
        self.system_id = system_id
        self.link.admit()

    def on_envelope(
        self, _channel: Channel, envelope: Envelope, data: bytes, release: Release
    ) -> None:
        """(ChannelOwner) Route a message, or answer a control frame."""
        if isinstance(envelope.frame, Data | DeliveryAck) and self.system_id is not None:
            self._children.route(self, envelope, data, release)
        else:
            release()
            self._children.control(self, envelope)

    def on_channel_closed(self, _channel: Channel, reason: str) -> None:
        """(ChannelOwner) The child is gone."""
        self._children.on_child_lost(self, reason)

    def record_request(self, envelope: Envelope) -> None:
        """Remember a message to this child, if it is a call."""
        if not envelope.rtype & (ReplyType.REPLY | ReplyType.STREAM):
            return
        if envelope.corr_id is None or envelope.reply_to is None:
            return
        if len(self.under_way) >= MAX_CALLS_UNDER_WAY:
            del self.under_way[next(iter(self.under_way))]
        is_stream = bool(envelope.rtype & ReplyType.STREAM)
        call = CallUnderWay(envelope.id, envelope.reply_to, envelope.trace_id, is_stream)
        self.under_way[envelope.corr_id] = call

    def record_answer(self, envelope: Envelope) -> None:
        """Forget the call that a message from this child ends."""
        call = self.under_way.get(envelope.corr_id or "")
        if call is None or envelope.to != call.reply_to:
            return
        if not call.is_stream or _ends_stream(envelope):
            del self.under_way[envelope.corr_id or ""]


def _ends_stream(envelope: Envelope) -> bool:
    if not isinstance(envelope.frame, Data) or ends_flow(envelope):
        return True
    try:
        return read_response(envelope.frame.payload).value() is None
    except (msgspec.MsgspecError, CallError, RecursionError):
        return True
