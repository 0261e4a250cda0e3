"""Flow control: a link and the credits by which its two ends keep each other's queues short.

Each end may send 32 messages on a flow before the other has taken any. Taking gives credit back:
a consumer takes when it consumes, a relay when the next hop has room. So every queue is bounded,
and a flow that nobody reads stops its sender without stopping the others.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sized
from functools import partial

from strongroom.errors import ProtocolError, StreamStalled
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import CreditUpdate, Envelope, FlowFlag, decode, encode
from strongroom.messaging.link import Link, Loopback, check_size

WINDOW = 32
CREDIT_AFTER = 24
"""Credit is given in portions: one message for so many taken."""
MAX_HELD = 2 * WINDOW
"""A peer whose flow fills us with more than this ignores flow control, and loses its link."""
MAX_FLOWS = 4096
MAX_HELD_BYTES = 64 * 1024 * 1024
STALL = 10.0
SWEEP = 30.0

log = logging.getLogger("strongroom.messaging")
envelopes = logging.getLogger("strongroom.envelopes")

Taken = Callable[[], None]
"""Called once when a message needs no room any more."""
Deliver = Callable[["Channel", Envelope, bytes, Taken], None]


class _Outgoing:
    """What we may send on a flow, and what waits for credit."""

    __slots__ = ("credits", "ended", "touched", "waiting")

    def __init__(self, credit: int) -> None:
        self.credits = credit
        self.ended = False
        self.touched = True
        self.waiting: deque[tuple[bytes, Taken | None]] = deque()


class _Incoming:
    """What we hold of a flow, and what we took since credit was last given."""

    __slots__ = ("ended", "held", "taken", "touched")

    def __init__(self) -> None:
        self.held = 0
        self.taken = 0
        self.touched = True
        self.ended = False


class Channel:
    """A link whose messages are envelopes under flow control."""

    def __init__(
        self, link: Link | Loopback, deliver: Deliver, closed: Callable[[Channel, str], None]
    ) -> None:
        self.link = link
        self.flow_id = new_id()
        self._deliver = deliver
        self._closed = closed
        self._outgoing: dict[str, _Outgoing] = {}
        self._incoming: dict[str, _Incoming] = {}
        self._held_bytes = 0
        link.receiver = self

        self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    # --- sending ---

    def control(self, envelope: Envelope) -> None:
        """Send at once, without credit: what keeps a link alive must not wait behind data."""
        envelope.flow_id = self.flow_id
        self._write(encode(envelope))

    def post(self, flow_id: str, data: bytes, taken: Taken | None = None) -> None:
        """Send when the flow has credit; `taken` is called when the message has left.

        Raises:
            MessageTooLarge: It is larger than a link carries.
        """
        flow = self._flow_out(flow_id)
        if self._may_send(flow):
            flow.credits -= 1
            self._write(data)
            if taken is not None:
                taken()
        else:
            check_size(data)
            flow.waiting.append((data, taken))

    async def send(self, flow_id: str, data: bytes, timeout: float | None = None) -> None:
        """Send, and return when the message has left.

        Raises:
            MessageTooLarge: It is larger than a link carries.
            StreamStalled: The other end gave no credit for `timeout` seconds.
        """
        if self._may_send(self._flow_out(flow_id)):
            self.post(flow_id, data)
            return
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (data, lambda: None if left.done() else left.set_result(None))
        self.post(flow_id, *waiting)
        try:
            if timeout is None:  # the caller has a deadline of its own
                await left
            else:
                async with asyncio.timeout(timeout):
                    await left
        except TimeoutError:
            raise StreamStalled(f"The reader took nothing for {timeout} seconds.") from None
        finally:
            if not left.done() or left.cancelled():
                self._give_up(flow_id, waiting)

    def _flow_out(self, flow_id: str) -> _Outgoing:
        flow = self._outgoing.get(flow_id)
        if flow is None:
            if not self._has_room(self._outgoing):
                raise StreamStalled(f"More than {MAX_FLOWS} flows wait for {self.link.name}.")
            # Nobody gives credit to messages without a flow.
            flow = _Outgoing(WINDOW if flow_id else sys.maxsize)
            self._outgoing[flow_id] = flow
        flow.touched = True
        return flow

    def _may_send(self, flow: _Outgoing) -> bool:
        if self.link.closed.is_set():
            return True  # and it goes nowhere
        return flow.credits > 0 and self.link.writable and not flow.waiting

    def _give_up(self, flow_id: str, waiting: tuple[bytes, Taken]) -> None:
        flow = self._outgoing.get(flow_id)
        if flow is not None and waiting in flow.waiting:
            flow.waiting.remove(waiting)

    def end_flow(self, flow_id: str) -> None:
        """Forget a flow on which nothing will be sent any more."""
        flow = self._outgoing.get(flow_id)
        if flow is not None:
            flow.ended = True
            if not flow.waiting:
                del self._outgoing[flow_id]

    def on_writable(self) -> None:
        """(Receiver) Send what waited for the socket, flow by flow in turn."""
        ready = deque(flow for flow in self._outgoing.values() if flow.waiting)
        while ready and self.link.writable:
            flow = ready.popleft()
            if self._send_one(flow):
                ready.append(flow)

    def _send_one(self, flow: _Outgoing) -> bool:
        if not (flow.waiting and flow.credits and self.link.writable):
            return False
        data, taken = flow.waiting.popleft()
        flow.credits -= 1
        self._write(data)
        if taken is not None:
            taken()
        return True

    def _write(self, data: bytes) -> None:
        if envelopes.isEnabledFor(logging.DEBUG):
            envelopes.debug("to %s: %s", self.link.name, data.decode(errors="replace"))
        self.link.send(data)

    # --- receiving ---

    def on_message(self, data: bytes) -> None:
        """(Receiver) Read a message, and close the link if it is none."""
        if envelopes.isEnabledFor(logging.DEBUG):
            envelopes.debug("from %s: %s", self.link.name, data.decode(errors="replace"))
        try:
            envelope = decode(data)
            if envelope is None:
                log.warning("%s sent a frame of an unknown type; it is skipped", self.link.name)
            elif type(envelope.frame) is CreditUpdate:
                self._credited(envelope.frame)
            else:
                self._deliver(self, envelope, data, self._receive(envelope, len(data)))
        except ProtocolError as error:
            log.warning("%s broke the protocol: %s", self.link.name, error)
            self.link.close(1008, str(error))

    def on_closed(self, reason: str) -> None:
        """(Receiver) Let go of what waited, and tell the owner."""
        self._sweeper.cancel()
        for flow in self._outgoing.values():
            while flow.waiting:
                _, taken = flow.waiting.popleft()
                if taken is not None:
                    taken()
        self._outgoing.clear()
        self._incoming.clear()
        self._closed(self, reason)

    def _receive(self, envelope: Envelope, size: int) -> Taken:
        flow_id = envelope.flow_id or ""
        flow = self._incoming.get(flow_id)
        if flow is None:
            if not self._has_room(self._incoming):
                raise ProtocolError(f"more than {MAX_FLOWS} flows are in use")
            flow = self._incoming[flow_id] = _Incoming()
        flow.touched = True
        flow.held += 1
        flow.ended = ends_flow(envelope)
        self._held_bytes += size
        if flow.held > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
            raise ProtocolError(f"flow {flow_id!r} brought more than was credited")
        return partial(self._took, flow_id, flow, size)

    def _took(self, flow_id: str, flow: _Incoming, size: int) -> None:
        flow.held -= 1
        flow.taken += 1
        self._held_bytes -= size
        if flow.ended and not flow.held:
            self._incoming.pop(flow_id, None)
        elif flow.taken >= CREDIT_AFTER:
            self._give_credit(flow_id, flow)

    def _give_credit(self, flow_id: str, flow: _Incoming) -> None:
        credit = CreditUpdate(flow_id=flow_id, credits=flow.taken)
        flow.taken = 0
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

    def _has_room(self, flows: Sized) -> bool:
        if len(flows) >= MAX_FLOWS:
            self._forget_idle(even_if_touched=True)
        return len(flows) < MAX_FLOWS

    def _sweep(self) -> None:
        self._forget_idle()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _forget_idle(self, *, even_if_touched: bool = False) -> None:
        # Nobody says when a flow ends. To forget one is safe: we may then send a few messages more
        # than were credited, and what we owe is given before.
        for flow_id, outgoing in list(self._outgoing.items()):
            if not outgoing.waiting and (even_if_touched or not outgoing.touched):
                del self._outgoing[flow_id]
            outgoing.touched = False
        for flow_id, incoming in list(self._incoming.items()):
            if not incoming.held and (even_if_touched or not incoming.touched):
                del self._incoming[flow_id]
                if incoming.taken:
                    self._give_credit(flow_id, incoming)
            incoming.touched = False


def ends_flow(envelope: Envelope) -> bool:
    """Whether this is the last message of a stream that had a flow of its own."""
    return bool(envelope.flow_flags & FlowFlag.RESET) and envelope.flow_id == envelope.corr_id
