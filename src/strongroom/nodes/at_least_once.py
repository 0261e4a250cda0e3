"""At-least-once delivery: the caller stores a message until it is answered, the receiver until it
has handled it.

A caller keeps each request in `__delivery_outbox` and sends it again, under the same id, until it
is answered or given up. The called node stores it in `__delivery_inbox` before acknowledging it,
runs it again if that was cut short, and answers a repeated id with the recorded first answer. So
an operation may run twice if the node dies while running it, and is answered once. A message that
cannot be handled or delivered ends in `__delivery_dead_letters`. Streams are not stored.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, ClassVar, Self

import msgspec

from strongroom.errors import CallTimeout, FabricError, ProtocolError
from strongroom.messaging.address import new_id
from strongroom.messaging.delivery import AtMostOnce, Runner, Work
from strongroom.messaging.envelope import DeliveryAck, Envelope, NackCode, ReplyType, encode
from strongroom.messaging.link import check_size
from strongroom.messaging.places import own_place
from strongroom.messaging.rpc import nack_error
from strongroom.messaging.sender import Sender, receiver_of
from strongroom.messaging.stored import (
    DEAD_LETTERS,
    INBOX,
    OUTBOX,
    DeadLetter,
    Direction,
    ReceivedMessage,
    SentMessage,
    read_message,
)
from strongroom.messaging.unit import Unit
from strongroom.nodes.dead_letters import DeadLetters
from strongroom.nodes.inbox import Inbox
from strongroom.nodes.stubborn import StubbornWrites
from strongroom.settings import Settings
from strongroom.storage.typed import Set

if TYPE_CHECKING:
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

RESEND_SECONDS = (2.0, 4.0, 8.0, 10.0)
"""Pauses before a message without an acknowledgement is sent again; the last one repeats."""
REMIND_SECONDS = 30.0
"""The pause before a call that was acknowledged is sent again: its answer may have got lost."""
ACK_SECONDS = 30.0
"""Seconds for which the sender of a plain message waits for its acknowledgement."""
AWAY_SECONDS = 0.3
MAX_UNSETTLED = 10_000
KEEP_SENT = timedelta(days=1)

AWAY = {
    NackCode.CHILD_UNREACHABLE,
    NackCode.PEER_UNREACHABLE,
    NackCode.CONNECTOR_CLOSED,
    NackCode.CALL_INTERRUPTED,
    NackCode.NODE_LEAVING,
}
"""Codes that say: the receiver exists, but is not connected now."""

log = logging.getLogger(__name__)


class _Unsettled:
    """A message that is sent again on `resend`, or when no acknowledgement arrives in time."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.expects_reply = bool(envelope.rtype & ReplyType.REPLY)
        self.is_acknowledged = False
        self.resend = asyncio.Event()
        self.outcome: asyncio.Future[DeliveryAck] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    def end(self, ack: DeliveryAck) -> None:
        """Tell who waits for it what became of a plain message."""
        if not self.outcome.done():
            self.outcome.set_result(ack)


class AtLeastOnce(AtMostOnce):
    """Stores each message until it is settled."""

    keeps_calls: ClassVar[bool] = True

    def __init__(
        self,
        sender: Sender,
        outbox: KeyValueStore[SentMessage],
        inbox: Inbox,
        dead_letters: DeadLetters,
        writes: StubbornWrites,
    ) -> None:
        super().__init__(sender)
        self._outbox = outbox
        self._inbox = inbox
        self._dead_letters = dead_letters
        self._writes = writes
        self._unsettled: dict[str, _Unsettled] = {}
        self._room = asyncio.Semaphore(MAX_UNSETTLED)

    @classmethod
    async def open(cls, sender: Sender, provider: StorageProvider, settings: Settings) -> Self:
        """Open the stores of both directions."""
        dead_letters = DeadLetters(await provider.own_store(DeadLetter, DEAD_LETTERS))
        received = await provider.own_store(ReceivedMessage, INBOX)
        writes = StubbornWrites(settings.stop_grace_seconds)
        inbox = Inbox(sender, received, dead_letters, settings, writes)
        outbox = await provider.own_store(SentMessage, OUTBOX)
        return cls(sender, outbox, inbox, dead_letters, writes)

    async def start(self) -> None:
        await self._inbox.take_up()
        async for sent in self._outbox.scan():
            if sent.key not in self._unsettled:
                await self._take_up(sent.key, sent.value.envelope, sent.created)

    async def _take_up(self, key: str, text: str, created: datetime) -> None:
        try:
            envelope, _ = read_message(text)
        except ProtocolError as error:
            await self._set_aside(key, text, f"It cannot be read: {error}")
            return
        envelope.rtype &= ~ReplyType.REPLY  # the caller that waited for it has ended
        await self._room.acquire()
        self._keep_sending(_Unsettled(envelope), created, at_once=True)

    async def stop(self) -> None:
        sending = [entry.task for entry in self._unsettled.values() if entry.task is not None]
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        for entry in self._unsettled.values():
            reason = "This node has stopped; the message is sent again when it starts."
            entry.end(DeliveryAck(ok=False, code=NackCode.CALL_INTERRUPTED, reason=reason))
        await self._inbox.stop()
        await self._writes.stop()

    # --- sending ---

    async def send(self, envelope: Envelope) -> None:
        """Store a message and send it, again and again until it is settled."""
        await self._send(envelope)

    async def send_message(self, envelope: Envelope) -> DeliveryAck:
        """Send a plain message and return its acknowledgement: the agent's node has stored it."""
        entry = await self._send(envelope)
        try:
            with own_place.get():
                async with asyncio.timeout(ACK_SECONDS):
                    ack = await entry.outcome
        except TimeoutError:
            raise CallTimeout(
                f"{receiver_of(envelope)} did not acknowledge the message within "
                f"{ACK_SECONDS:g} seconds. It is stored, and is sent again until then."
            ) from None
        if not ack.ok:
            raise nack_error(ack)
        return ack

    async def _send(self, envelope: Envelope) -> _Unsettled:
        envelope = self._asking_for_ack(envelope)
        await self._room.acquire()
        entry = self._unsettled[envelope.id] = _Unsettled(envelope)
        try:
            data = encode(envelope)
            check_size(data)
            await self._outbox.set(envelope.id, SentMessage(envelope=data.decode()))
            await self.sender.send(envelope)
        except BaseException:
            self.settle(envelope.id)
            raise
        if envelope.id in self._unsettled:
            self._keep_sending(entry, datetime.now(UTC), at_once=False)
        return entry

    def _asking_for_ack(self, envelope: Envelope) -> Envelope:
        return msgspec.structs.replace(
            envelope,
            rtype=envelope.rtype | ReplyType.ACK,
            reply_to=envelope.reply_to or self.sender.sys_address,
            corr_id=envelope.corr_id or new_id(),
        )

    def settle(self, message_id: str) -> None:
        entry = self._unsettled.pop(message_id, None)
        if entry is None:
            return
        self._room.release()
        if entry.task is not None:
            entry.task.cancel()
        self._writes.start(partial(self._outbox.delete, message_id))

    def _keep_sending(self, entry: _Unsettled, created: datetime, *, at_once: bool) -> None:
        self._unsettled[entry.envelope.id] = entry
        entry.task = asyncio.create_task(self._send_again(entry, created, at_once=at_once))

    async def _send_again(self, entry: _Unsettled, created: datetime, *, at_once: bool) -> None:
        if at_once:
            await self._try(entry)
        for pause in chain(RESEND_SECONDS, repeat(RESEND_SECONDS[-1])):
            try:
                async with asyncio.timeout(REMIND_SECONDS if entry.is_acknowledged else pause):
                    await entry.resend.wait()
                entry.resend.clear()
                await asyncio.sleep(AWAY_SECONDS)
            except TimeoutError:
                if datetime.now(UTC) - created > KEEP_SENT:
                    self._give_up(entry, f"It was not acknowledged for {KEEP_SENT}")
            await self._try(entry)

    async def _try(self, entry: _Unsettled) -> None:
        # The path of this node may have changed with the id of its sentinel.
        inbox, _, _ = (entry.envelope.reply_to or "").partition("@")
        entry.envelope.reply_to = f"{inbox}@{self.sender.bindings.path}"
        entry.envelope.flow_id = None
        try:
            await self.sender.send(entry.envelope)
        except FabricError as error:
            log.info("%s is not sent yet: %s", entry.envelope.id, error)

    def on_ack(self, ack: DeliveryAck) -> bool:
        entry = self._unsettled.get(ack.ref_id or "")
        if entry is None:
            if ack.code == NackCode.SET_ASIDE:
                log.warning("message %s was not handled: %s", ack.ref_id, ack.reason)
            return False
        entry.is_acknowledged = ack.ok
        if ack.ok:
            if not entry.expects_reply:
                entry.end(ack)
                self.settle(entry.envelope.id)
        elif ack.code in AWAY or (
            ack.code == NackCode.NO_ROUTE and self.sender.may_return(entry.envelope.to)
        ):
            entry.resend.set()
        elif ack.code == NackCode.BUSY:
            pass  # it is sent again, as if it had not arrived
        elif entry.expects_reply:
            self.settle(entry.envelope.id)
            return False
        else:
            entry.end(ack)
            self._give_up(entry, ack.reason or f"It was refused: {ack.code}")
        return True

    def _give_up(self, entry: _Unsettled, reason: str) -> None:
        text = encode(entry.envelope).decode()
        self._writes.start(partial(self._set_aside, entry.envelope.id, text, reason))
        self.settle(entry.envelope.id)

    async def _set_aside(self, key: str, text: str, reason: str) -> None:
        letter = DeadLetter(direction=Direction.SENT, envelope=text, reasons=[reason])
        await self._dead_letters.add(key, letter)
        await self._outbox.delete(key)

    def on_link_lost(self) -> None:
        """Send everything again: an acknowledged message may have been lost with its receiver."""
        for entry in self._unsettled.values():
            entry.is_acknowledged = False
            entry.resend.set()

    # --- receiving ---

    def receive(self, runner: Runner, work: Work) -> None:
        """Store a message, acknowledge it and run it, or repeat the answer that it had."""
        if _is_stored(work.envelope):
            self._inbox.receive(runner, work)
        else:
            super().receive(runner, work)

    async def record_answer(
        self, request: Envelope, answer: Envelope | None, unit: Unit | None = None
    ) -> None:
        if unit is not None:
            await self._store_unit(request, answer, unit)
        elif _is_stored(request):
            await self._inbox.record_answer(request, answer)

    async def _store_unit(self, request: Envelope, answer: Envelope | None, unit: Unit) -> None:
        """Store a unit with the answer, and with the messages that it sends."""
        more = [self._inbox.answer_batch(request, answer)] if _is_stored(request) else []
        messages = [self._asking_for_ack(message) for message in unit.messages]
        if messages:
            sent = [
                Set(message.id, SentMessage(envelope=encode(message).decode()))
                for message in messages
            ]
            more.append(self._outbox.batch(sent))
        await unit.store(more)
        if _is_stored(request):
            await self._inbox.finish(request)
        for message in messages:
            await self._room.acquire()
            self._keep_sending(_Unsettled(message), datetime.now(UTC), at_once=True)

    def on_failure(self, runner: Runner, work: Work, reason: str) -> None:
        if _is_stored(work.envelope):
            self._inbox.on_failure(runner, work, reason)

    def resume(self, runner: Runner) -> None:
        self._inbox.resume(runner)


def _is_stored(envelope: Envelope) -> bool:
    return bool(envelope.rtype & ReplyType.ACK) and not envelope.rtype & ReplyType.STREAM
