"""Flow control: credits by which the two ends of a link keep each other's queues short.

Each end may send 32 messages on a flow before the other releases any. A release gives credit back:
a consumer releases a message when it consumes it, a relay when the next hop has room for it. So
every queue is bounded, and a flow that nobody reads stops its sender without stopping others.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sized
from functools import partial
from typing import Protocol

from strongroom.errors import ProtocolError, StreamStalled
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import CreditUpdate, Envelope, FlowFlag, decode, encode
from strongroom.messaging.link import Link, Loopback, check_size
from strongroom.peers_log import peers_log
from strongroom.printable import printable

WINDOW = 32
CREDIT_AFTER = 24
"""Released messages for which one CreditUpdate is sent."""
MAX_HELD = 2 * WINDOW
"""Messages of one flow above which we stop reading: their sender ignores flow control."""
FORGET_ABOVE = 4096
"""Flows of one direction above which the idle ones are forgotten."""
MAX_HELD_BYTES = 512 * 1024 * 1024
"""Bytes of one link above which we stop reading it: more than a sentinel lets wait for all readers
together, so that those who do not read cannot stop an agent that answers them."""
STALL_SECONDS = 10.0
SWEEP_SECONDS = 30.0

log = peers_log(__name__)
envelopes = logging.getLogger("strongroom.envelopes")

Release = Callable[[], None]
"""Call exactly once when done with a message: it gives the sender its credit back."""


class ChannelOwner(Protocol):
    """Receives the events of a channel."""

    def on_envelope(
        self, channel: Channel, envelope: Envelope, data: bytes, release: Release
    ) -> None:
        """A message arrived: `envelope`, which was decoded from `data`."""

    def on_malformed(self, channel: Channel, error: ProtocolError) -> None:
        """A message cannot be used. Whether the link is closed is for the owner to say."""

    def on_channel_closed(self, channel: Channel, reason: str) -> None:
        """The link is gone. No more events follow."""


class Waiting:
    """The bytes of messages that wait for their receivers to read, in some channels together."""

    def __init__(self) -> None:
        self.bytes = 0


class _Outgoing:
    """One flow of ours: its credits, and the messages that wait for credit."""

    __slots__ = ("credits", "ended", "touched", "waiting")

    def __init__(self, credit: int) -> None:
        self.credits = credit
        self.ended = False
        self.touched = True
        self.waiting: deque[tuple[bytes, Release | None]] = deque()


class _Incoming:
    """One flow of the peer's: the messages we hold, and those released since the last credit."""

    __slots__ = ("ended", "held", "since_credit", "touched")

    def __init__(self) -> None:
        self.held = 0
        self.since_credit = 0
        self.touched = True
        self.ended = False


class Channel:
    """A link whose messages are envelopes under flow control.

    Args:
        link: What carries the messages.
        owner: What they are for.
        waiting: Counts the bytes that wait here, for several channels together.
        max_flows: How many flows the other end may have in use. None: any number, for an end that
            passes on what many others send, each with a limit of its own.
    """

    def __init__(
        self,
        link: Link | Loopback,
        owner: ChannelOwner,
        waiting: Waiting | None = None,
        max_flows: int | None = None,
    ) -> None:
        self.link = link
        self.flow_id = new_id()
        self._owner = owner
        self._outgoing: dict[str, _Outgoing] = {}
        self._incoming: dict[str, _Incoming] = {}
        self._max_flows = max_flows
        self._forget_above = FORGET_ABOVE
        self.waiting_bytes = 0
        self._all_waiting = waiting or Waiting()
        self._held_bytes = 0
        self._is_paused = False
        self._is_closed = False
        self._shows = envelopes.isEnabledFor(logging.DEBUG)
        link.receiver = self
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    # --- sending ---

    def send_now(self, envelope: Envelope) -> None:
        """Send at once, without credit. What keeps a link alive must not queue after data."""
        envelope.flow_id = self.flow_id
        self._write(encode(envelope))

    def enqueue(self, flow_id: str, data: bytes, release: Release | None = None) -> None:
        """Send when the flow has credit, and call `release` when the message has left.

        Raises:
            MessageTooLarge: It is larger than a link can carry.
        """
        flow = self._flow_out(flow_id)
        if self._may_send(flow):
            flow.credits -= 1
            self._write(data)
            if release is not None:
                release()
        else:
            check_size(data)
            flow.waiting.append((data, release))
            self._count_waiting(len(data))

    async def send(self, flow_id: str, data: bytes, timeout: float | None = None) -> None:
        """Send, and return when the message has left.

        Raises:
            MessageTooLarge: It is larger than a link can carry.
            StreamStalled: The other end gave no credit for `timeout` seconds. Without `timeout`
                this waits for as long as it takes.
        """
        if self._may_send(self._flow_out(flow_id)):
            self.enqueue(flow_id, data)
            return
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (data, lambda: None if left.done() else left.set_result(None))
        self.enqueue(flow_id, *waiting)
        try:
            if timeout is None:  # the caller sets its own deadline
                await left
            else:
                async with asyncio.timeout(timeout):
                    await left
        except TimeoutError:
            raise StreamStalled(f"The reader stopped reading for {timeout} seconds.") from None
        finally:
            if not left.done() or left.cancelled():
                self._give_up(flow_id, waiting)

    def _flow_out(self, flow_id: str) -> _Outgoing:
        flow = self._outgoing.get(flow_id)
        if flow is None:
            self._forget_some(self._outgoing, self._forget_above)
            # Nobody gives credit for messages without a flow.
            flow = _Outgoing(WINDOW if flow_id else sys.maxsize)
            self._outgoing[flow_id] = flow
        flow.touched = True
        return flow

    def _may_send(self, flow: _Outgoing) -> bool:
        if flow.credits > 0 and self.link.writable and not flow.waiting:
            return True
        return self._is_closed  # then the link discards it

    def _give_up(self, flow_id: str, waiting: tuple[bytes, Release]) -> None:
        flow = self._outgoing.get(flow_id)
        if flow is not None and waiting in flow.waiting:
            flow.waiting.remove(waiting)
            self._count_waiting(-len(waiting[0]))

    def _count_waiting(self, size: int) -> None:
        self.waiting_bytes += size
        self._all_waiting.bytes += size

    def backlog(self, flow_id: str) -> int:
        """Number of messages on a flow that wait for credit."""
        flow = self._outgoing.get(flow_id)
        return len(flow.waiting) if flow else 0

    def end_flow(self, flow_id: str) -> None:
        """Forget a flow on which nothing more will be sent."""
        flow = self._outgoing.get(flow_id)
        if flow is not None:
            flow.ended = True
            if not flow.waiting:
                del self._outgoing[flow_id]

    def on_writable(self) -> None:
        """(Receiver) Send what waited for the socket, one message of each flow in turn."""
        ready = deque(flow for flow in self._outgoing.values() if flow.waiting)
        while ready and self.link.writable:
            flow = ready.popleft()
            if self._send_one(flow):
                ready.append(flow)

    def _send_one(self, flow: _Outgoing) -> bool:
        if not (flow.waiting and flow.credits and self.link.writable):
            return False
        data, release = flow.waiting.popleft()
        self._count_waiting(-len(data))
        flow.credits -= 1
        self._write(data)
        if release is not None:
            release()
        return True

    def _write(self, data: bytes) -> None:
        if self._shows:
            envelopes.debug("to %s: %s", self.link.name, _shown(data))
        self.link.send(data)

    # --- receiving ---

    def on_message(self, data: bytes) -> None:
        """(Receiver) Read a message."""
        if self._shows:
            envelopes.debug("from %s: %s", self.link.name, _shown(data))
        try:
            envelope = decode(data)
            if type(envelope.frame) is CreditUpdate:
                self._credited(envelope.frame)
            else:
                self._owner.on_envelope(self, envelope, data, self._hold(envelope, len(data)))
        except ProtocolError as error:
            self._owner.on_malformed(self, error)

    def on_closed(self, reason: str) -> None:
        """(Receiver) Release what waited, and pass the event on."""
        self._is_closed = True
        self._sweeper.cancel()
        for flow in self._outgoing.values():
            while flow.waiting:
                _, release = flow.waiting.popleft()
                if release is not None:
                    release()
        self._count_waiting(-self.waiting_bytes)
        self._outgoing.clear()
        self._incoming.clear()
        self._owner.on_channel_closed(self, reason)

    def _hold(self, envelope: Envelope, size: int) -> Release:
        flow_id = envelope.flow_id or ""
        flow = self._incoming.get(flow_id)
        if flow is None:
            self._forget_some(self._incoming, self._max_flows or self._forget_above)
            if self._max_flows is not None and len(self._incoming) >= self._max_flows:
                raise ProtocolError(f"more than {self._max_flows} flows are in use")
            flow = self._incoming[flow_id] = _Incoming()
        flow.touched = True
        flow.held += 1
        flow.ended = ends_flow(envelope)
        self._held_bytes += size
        is_own = self._max_flows is not None  # what others send is for the other end to limit
        if (is_own and flow.held > MAX_HELD) or self._held_bytes > MAX_HELD_BYTES:
            self._pause()
        return partial(self._release, flow_id, flow, size)

    def _release(self, flow_id: str, flow: _Incoming, size: int) -> None:
        flow.held -= 1
        flow.since_credit += 1
        self._held_bytes -= size
        if self._is_paused and flow.held <= WINDOW and self._held_bytes <= MAX_HELD_BYTES // 2:
            self._is_paused = False
            self.link.resume_reading()
        if flow.ended and not flow.held:
            self._incoming.pop(flow_id, None)
        elif flow.since_credit >= CREDIT_AFTER:
            self._give_credit(flow_id, flow)

    def _pause(self) -> None:
        # The sender alone waits: what it sends is left in the socket until the rest is released.
        if not self._is_paused:
            log.info("%s sends more than it has credit for", self.link.name)
            self._is_paused = True
            self.link.pause_reading()

    def _give_credit(self, flow_id: str, flow: _Incoming) -> None:
        credit = CreditUpdate(flow_id=flow_id, credits=flow.since_credit)
        flow.since_credit = 0
        self._write(encode(Envelope(flow_id=flow_id, flow_flags=FlowFlag.ACK, frame=credit)))

    def _credited(self, frame: CreditUpdate) -> None:
        flow = self._outgoing.get(frame.flow_id)
        if flow is not None:
            flow.credits = max(0, min(WINDOW, flow.credits + frame.credits))
            while self._send_one(flow):
                pass
            if flow.ended and not flow.waiting:
                self._outgoing.pop(frame.flow_id, None)

    # --- the life of flows ---

    def _forget_some(self, flows: Sized, number: int) -> None:
        if len(flows) >= number:
            self._forget_idle(even_if_touched=True)
            in_use = max(len(self._incoming), len(self._outgoing))
            self._forget_above = max(FORGET_ABOVE, 2 * in_use)

    def _sweep(self) -> None:
        self._forget_idle()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _forget_idle(self, *, even_if_touched: bool = False) -> None:
        # Peers do not say when a flow ends. Forgetting one is safe: at worst we send a few messages
        # more than we have credit for, and we first give the credit that we owe.
        for flow_id, outgoing in list(self._outgoing.items()):
            if not outgoing.waiting and (even_if_touched or not outgoing.touched):
                del self._outgoing[flow_id]
            outgoing.touched = False
        for flow_id, incoming in list(self._incoming.items()):
            if not incoming.held and (even_if_touched or not incoming.touched):
                del self._incoming[flow_id]
                if incoming.since_credit:
                    self._give_credit(flow_id, incoming)
            incoming.touched = False


def ends_flow(envelope: Envelope) -> bool:
    """Whether this is the last message of a stream, which has a flow to itself."""
    is_reset = bool(envelope.flow_flags & FlowFlag.RESET)
    return is_reset and envelope.flow_id is not None and envelope.flow_id == envelope.corr_id


def _shown(data: bytes) -> str:
    return printable(data.decode(errors="replace"))
