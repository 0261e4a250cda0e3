"""The link of one child of a sentinel, and the calls under way to the child."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from strongroom.errors import CallError, ProtocolError
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import ROUTED, Data, DeliveryAck, Envelope, NackCode, ReplyType
from strongroom.messaging.flow import Channel, Release, Waiting, ends_flow
from strongroom.messaging.link import Link
from strongroom.messaging.rpc import read_response
from strongroom.peers_log import peers_log

MAX_CALLS_UNDER_WAY = 8192
"""Calls of one child that are remembered until they are answered."""

MAX_FLOWS = 4096
"""Flows of one child on which messages wait for their receivers."""

log = peers_log(__name__)

CallKey = tuple[str, str]
"""The `corrId` and `replyTo` of a call. No other child may use the same `replyTo`."""


class ChildEvents(Protocol):
    """Receives what children send, and learns when one is gone."""

    def route(self, source: ChildLink, envelope: Envelope, data: bytes, release: Release) -> None:
        """A message for another node, or for the sentinel's own."""

    def control(self, child: ChildLink, request: Envelope) -> None:
        """A control frame."""

    def on_child_lost(self, child: ChildLink, reason: str) -> None:
        """The link is gone."""


class CallUnderWay(Struct, gc=False):
    """What is needed to tell a caller that its call was cut off."""

    request_id: str
    trace_id: str | None
    is_stream: bool
    caller: ChildLink | None


class ChildLink:
    """The link of one child, and the calls under way to it.

    `reply_to` is the last one that was found to lead to the child: it seldom writes another.
    """

    def __init__(self, children: ChildEvents, link: Link, waiting: Waiting) -> None:
        self._children = children
        self.link = link
        self.system_id: str | None = None
        self.under_way: dict[CallKey, CallUnderWay] = {}
        self.channel = Channel(link, self, waiting, MAX_FLOWS)
        self.nack_flow_id = new_id()
        self.flow_id = new_id()
        self.reply_to: str | None = None
        self._called: dict[CallKey, ChildLink] = {}

    def on_attached(self, system_id: str) -> None:
        """The handshake has succeeded."""
        self.system_id = system_id
        self.link.admit()

    def on_envelope(
        self, _channel: Channel, envelope: Envelope, data: bytes, release: Release
    ) -> None:
        """(ChannelOwner) Route a message, or answer a control frame."""
        if isinstance(envelope.frame, ROUTED) and self.system_id is not None:
            self._children.route(self, envelope, data, release)
        else:
            release()
            self._children.control(self, envelope)

    def on_malformed(self, _channel: Channel, error: ProtocolError) -> None:
        """(ChannelOwner) The child broke the protocol."""
        log.warning("%s broke the protocol: %s", self.link.name, error)
        self.link.close(1008, str(error))

    def on_channel_closed(self, _channel: Channel, reason: str) -> None:
        """(ChannelOwner) The child is gone."""
        self._children.on_child_lost(self, reason)

    def record_request(self, envelope: Envelope, caller: ChildLink | None) -> None:
        """Remember a message to this child, if it is a call. The sentinel's have no `caller`."""
        if not envelope.rtype & ReplyType.CALL:
            return
        if envelope.corr_id is None or envelope.reply_to is None:
            return
        key = (envelope.corr_id, envelope.reply_to)
        if caller is not None:
            caller.record_call(key, self)
        is_stream = bool(envelope.rtype & ReplyType.STREAM)
        self.under_way[key] = CallUnderWay(envelope.id, envelope.trace_id, is_stream, caller)

    def record_call(self, key: CallKey, callee: ChildLink) -> None:
        """Remember to whom a call of this child went. Of too many, forget the oldest."""
        if (before := self._called.get(key)) is not None:
            before.under_way.pop(key, None)  # it was sent again, and perhaps to another
        elif len(self._called) >= MAX_CALLS_UNDER_WAY:
            oldest = next(iter(self._called))
            self._called.pop(oldest).under_way.pop(oldest, None)
        self._called[key] = callee

    def record_answer(self, envelope: Envelope) -> None:
        """Forget the call that a message from this child ends."""
        if (
            isinstance(envelope.frame, DeliveryAck)
            and envelope.frame.code == NackCode.STREAM_CLOSED
        ):
            left = (envelope.corr_id or "", envelope.reply_to or "")
            if (callee := self._called.get(left)) is not None:
                callee._forget(left)  # noqa: SLF001 - the same class
        if not self.under_way:
            return
        key = (envelope.corr_id or "", envelope.to or "")
        call = self.under_way.get(key)
        if call is not None and (not call.is_stream or _ends_stream(envelope)):
            self._forget(key)

    def interrupted(self) -> list[tuple[CallKey, CallUnderWay]]:
        """The link is gone: forget the calls of this child, and return those to it."""
        interrupted = list(self.under_way.items())
        for key, _ in interrupted:
            self._forget(key)
        for key, callee in self._called.items():
            callee.under_way.pop(key, None)
        self._called.clear()
        return interrupted

    def _forget(self, key: CallKey) -> None:
        caller = self.under_way.pop(key).caller
        if caller is not None:
            caller._called.pop(key, None)  # noqa: SLF001 - the same class


def _ends_stream(envelope: Envelope) -> bool:
    if not isinstance(envelope.frame, Data) or ends_flow(envelope):
        return True
    try:
        return read_response(envelope.frame.payload).value() is None
    except (msgspec.MsgspecError, CallError, RecursionError):
        return True
