"""At-least-once delivery: what is sent is kept until it is answered, what comes until it is done.

A caller keeps each request in `__delivery_outbox` and sends it again, under the same id, until it
is answered or given up. The called node keeps it in `__delivery_inbox` before it acknowledges it,
handles it again if it crashes, and answers a repeated id from the record of the first answer. So
an operation may run twice, if the node dies within it, and is answered once. Streams are not kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from strongroom.errors import FabricError
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, ReplyType, decode, encode
from strongroom.messaging.flow import Taken
from strongroom.messaging.rpc import AWAY
from strongroom.messaging.serving import Served

if TYPE_CHECKING:
    from strongroom.messaging.rpc import Handler
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

PAUSES = (2.0, 4.0, 8.0, 10.0)
AWAY_PAUSE = 0.3
MAX_UNSETTLED = 10_000
KEEP_SENT = 24 * 3600.0
KEEP_ANSWERS = 600.0

log = logging.getLogger("strongroom.nodes")


class Sent(BaseModel):
    """A message that is not settled."""

    envelope: str


class Received(BaseModel):
    """A message that was acknowledged, and what it was answered."""

    envelope: str
    is_done: bool = False
    answer: str | None = None


class _Unsettled:
    """A message on its way: sent again when `stirred`, or when no acknowledgement comes."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.expects_reply = bool(envelope.rtype & ReplyType.REPLY)
        self.is_acknowledged = False
        self.stirred = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Delivery:
    """The two stores, and the messages that are between them."""

    def __init__(
        self,
        stores: tuple[KeyValueStore[Sent], KeyValueStore[Received]],
        transmit: Callable[[Envelope], Awaitable[None]],
        acknowledge: Callable[[Envelope, DeliveryAck], None],
        sys_address: Callable[[], str],
    ) -> None:
        self._outbox, self._inbox = stores
        self._transmit = transmit
        self._acknowledge = acknowledge
        self._sys_address = sys_address
        self._unsettled: dict[str, _Unsettled] = {}
        self._room = asyncio.Semaphore(MAX_UNSETTLED)
        self._taking: set[str] = set()
        self._left: list[Envelope] = []
        self._work: set[asyncio.Task[None]] = set()

    @staticmethod
    async def open_stores(
        provider: StorageProvider,
    ) -> tuple[KeyValueStore[Sent], KeyValueStore[Received]]:
        """The two stores of a node."""
        outbox = await provider.own_store(Sent, "__delivery_outbox")
        return outbox, await provider.own_store(Received, "__delivery_inbox")

    async def start(self) -> None:
        """Take up what the last run left."""
        async for entry in self._inbox.scan():
            envelope = decode(entry.value.envelope.encode())
            if envelope is not None and not entry.value.is_done:
                self._left.append(envelope)
        async for sent in self._outbox.scan():
            envelope = decode(sent.value.envelope.encode())
            if envelope is not None:
                envelope.rtype &= ~ReplyType.REPLY  # whoever waited for the reply is gone
                self._see_through(_Unsettled(envelope), at_once=True)

    async def stop(self) -> None:
        """End all work; what is stored stays."""
        sending = [entry.task for entry in self._unsettled.values() if entry.task is not None]
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, *self._work, return_exceptions=True)

    # --- sending ---

    async def send(self, envelope: Envelope) -> None:
        """Store a message and send it; it is sent again until it is settled."""
        envelope.rtype |= ReplyType.ACK
        envelope.reply_to = envelope.reply_to or self._sys_address()
        envelope.corr_id = envelope.corr_id or new_id()
        await self._room.acquire()
        entry = self._unsettled[envelope.id] = _Unsettled(envelope)
        try:
            text = encode(envelope).decode()
            await self._outbox.set(envelope.id, Sent(envelope=text), ttl=KEEP_SENT)
            await self._transmit(envelope)
        except BaseException:
            self.settle(envelope.id)
            raise
        if envelope.id in self._unsettled:
            self._see_through(entry, at_once=False)

    def settle(self, message_id: str) -> None:
        """A message is answered, or nobody waits for it any more."""
        entry = self._unsettled.pop(message_id, None)
        if entry is None:
            return
        self._room.release()
        if entry.task is not None:
            entry.task.cancel()
        self._spawn(self._forget(message_id))

    async def _forget(self, message_id: str) -> None:
        await self._outbox.delete(message_id)

    def _see_through(self, entry: _Unsettled, *, at_once: bool) -> None:
        self._unsettled[entry.envelope.id] = entry
        entry.task = asyncio.create_task(self._send_again(entry, at_once=at_once))

    async def _send_again(self, entry: _Unsettled, *, at_once: bool) -> None:
        if at_once:
            await self._try(entry)
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                async with asyncio.timeout(pause):
                    await entry.stirred.wait()
                entry.stirred.clear()
                await asyncio.sleep(AWAY_PAUSE)
            except TimeoutError:
                if entry.is_acknowledged:
                    continue
            await self._try(entry)

    async def _try(self, entry: _Unsettled) -> None:
        try:
            await self._transmit(entry.envelope)
        except FabricError as error:
            log.info("%s is not sent yet: %s", entry.envelope.id, error)

    def on_ack(self, ack: DeliveryAck) -> bool:
        """Heed an acknowledgement; False when it is for the call to handle."""
        entry = self._unsettled.get(ack.ref_id or "")
        if entry is None:
            return False
        if ack.ok:
            entry.is_acknowledged = True
            if not entry.expects_reply:
                self.settle(entry.envelope.id)
        elif ack.code in AWAY:
            entry.is_acknowledged = False
            entry.stirred.set()
        else:
            self.settle(entry.envelope.id)
            return False
        return True

    def stir(self) -> None:
        """The link was lost: ask again for what may have been lost with it."""
        for entry in self._unsettled.values():
            entry.is_acknowledged = False
            entry.stirred.set()

    # --- receiving ---

    def take(
        self, served: Served, handler: Handler, envelope: Envelope, data: Data, taken: Taken
    ) -> None:
        """Store a message, acknowledge it and run it; or repeat what was answered to it."""
        self._spawn(self._take(served, handler, envelope, data, taken))

    async def _take(
        self, served: Served, handler: Handler, envelope: Envelope, data: Data, taken: Taken
    ) -> None:
        if envelope.id in self._taking:
            taken()
            return
        self._taking.add(envelope.id)
        try:
            known = await self._inbox.get(envelope.id)
            if known is None:
                text = encode(envelope).decode()
                await self._inbox.set(envelope.id, Received(envelope=text))
        finally:
            self._taking.discard(envelope.id)
        self._acknowledge(envelope, DeliveryAck(ok=True))
        if known is None:
            served.start(handler, envelope, data, taken)
            return
        taken()
        if known.answer is not None:
            answer = decode(known.answer.encode())
            assert answer is not None
            answer.id, answer.to = new_id(), envelope.reply_to
            await self._transmit(answer)

    async def answered(self, request: Envelope, answer: Envelope | None) -> None:
        """Record what a request was answered, before the answer is sent."""
        if request.rtype & ReplyType.ACK and not request.rtype & ReplyType.STREAM:
            text = None if answer is None else encode(answer).decode()
            record = Received(envelope="", is_done=True, answer=text)
            await self._inbox.set(request.id, record, ttl=KEEP_ANSWERS)

    def resume(self, served: Served, handler: Handler, addresses: set[str]) -> None:
        """Handle what was acknowledged and not done when the node last stopped."""
        for envelope in [each for each in self._left if each.to in addresses]:
            self._left.remove(envelope)
            if isinstance(envelope.frame, Data):
                served.start(handler, envelope, envelope.frame, lambda: None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a message was not delivered", exc_info=task.exception())
