"""At-least-once delivery: the caller stores a message until it is answered, the receiver until it
has handled it.

A caller keeps each request in `__delivery_outbox` and sends it again, under the same id, until it
is answered or given up. The called node stores it in `__delivery_inbox` before acknowledging it,
runs it again after a crash, and answers a repeated id with the recorded first answer. So an
operation may run twice if the node dies while running it, and is answered once. Streams are not
stored.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import chain, repeat
from typing import TYPE_CHECKING, ClassVar, Self

import msgspec
from pydantic import BaseModel

from strongroom.errors import FabricError, ProtocolError
from strongroom.messaging.address import new_id
from strongroom.messaging.delivery import AtMostOnce, Runner
from strongroom.messaging.envelope import (
    Data,
    DeliveryAck,
    Envelope,
    NackCode,
    ReplyType,
    decode,
    encode,
)
from strongroom.messaging.flow import Release
from strongroom.messaging.rpc import Handler
from strongroom.messaging.sender import Sender
from strongroom.nodes.background import BackgroundTasks

if TYPE_CHECKING:
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

RESEND_SECONDS = (2.0, 4.0, 8.0, 10.0)
"""Pauses before a message without an acknowledgement is sent again; the last one repeats."""
AWAY_SECONDS = 0.3
MAX_UNSETTLED = 10_000
KEEP_SENT_SECONDS = 24 * 3600.0
KEEP_ANSWERS_SECONDS = 600.0

AWAY = {
    NackCode.CHILD_UNREACHABLE,
    NackCode.PEER_UNREACHABLE,
    NackCode.CONNECTOR_CLOSED,
    NackCode.CALL_INTERRUPTED,
}
"""Codes that say: the receiver exists, but is not connected now."""

log = logging.getLogger(__name__)


class SentMessage(BaseModel):
    """A message that has no answer yet."""

    envelope: str


class ReceivedMessage(BaseModel):
    """A message that was acknowledged, and its answer once there is one."""

    envelope: str
    is_done: bool = False
    answer: str | None = None


class _Unsettled:
    """A message that is sent again on `resend`, or when no acknowledgement arrives in time."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.expects_reply = bool(envelope.rtype & ReplyType.REPLY)
        self.is_acknowledged = False
        self.resend = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class AtLeastOnce(AtMostOnce):
    """Stores each message until it is settled."""

    keeps_calls: ClassVar[bool] = True

    def __init__(
        self,
        sender: Sender,
        outbox: KeyValueStore[SentMessage],
        inbox: KeyValueStore[ReceivedMessage],
    ) -> None:
        super().__init__(sender)
        self._outbox = outbox
        self._inbox = inbox
        self._unsettled: dict[str, _Unsettled] = {}
        self._room = asyncio.Semaphore(MAX_UNSETTLED)
        self._storing: set[str] = set()
        self._unfinished: list[Envelope] = []
        self._tasks = BackgroundTasks("a message was not delivered")

    @classmethod
    async def open(cls, sender: Sender, provider: StorageProvider) -> Self:
        """Open the stores of both directions."""
        outbox = await provider.own_store(SentMessage, "__delivery_outbox")
        inbox = await provider.own_store(ReceivedMessage, "__delivery_inbox")
        return cls(sender, outbox, inbox)

    async def start(self) -> None:
        async for entry in self._inbox.scan():
            envelope = None if entry.value.is_done else _decoded(entry.key, entry.value.envelope)
            if envelope is not None:
                self._unfinished.append(envelope)
        async for sent in self._outbox.scan():
            envelope = _decoded(sent.key, sent.value.envelope)
            if envelope is not None:
                envelope.rtype &= ~ReplyType.REPLY  # the caller that waited for it has ended
                await self._room.acquire()
                self._keep_sending(_Unsettled(envelope), at_once=True)

    async def stop(self) -> None:
        sending = [entry.task for entry in self._unsettled.values() if entry.task is not None]
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await self._tasks.finish()

    # --- sending ---

    async def send(self, envelope: Envelope) -> None:
        """Store a message and send it, again and again until it is settled."""
        envelope = msgspec.structs.replace(
            envelope,
            rtype=envelope.rtype | ReplyType.ACK,
            reply_to=envelope.reply_to or self.sender.sys_address,
            corr_id=envelope.corr_id or new_id(),
        )
        await self._room.acquire()
        entry = self._unsettled[envelope.id] = _Unsettled(envelope)
        try:
            text = encode(envelope).decode()
            message = SentMessage(envelope=text)
            await self._outbox.set(envelope.id, message, ttl=KEEP_SENT_SECONDS)
            await self.sender.send(envelope)
        except BaseException:
            self.settle(envelope.id)
            raise
        if envelope.id in self._unsettled:
            self._keep_sending(entry, at_once=False)

    def settle(self, message_id: str) -> None:
        entry = self._unsettled.pop(message_id, None)
        if entry is None:
            return
        self._room.release()
        if entry.task is not None:
            entry.task.cancel()
        self._tasks.start(self._outbox.delete(message_id))

    def _keep_sending(self, entry: _Unsettled, *, at_once: bool) -> None:
        self._unsettled[entry.envelope.id] = entry
        entry.task = asyncio.create_task(self._send_again(entry, at_once=at_once))

    async def _send_again(self, entry: _Unsettled, *, at_once: bool) -> None:
        if at_once:
            await self._try(entry)
        for pause in chain(RESEND_SECONDS, repeat(RESEND_SECONDS[-1])):
            try:
                async with asyncio.timeout(pause):
                    await entry.resend.wait()
                entry.resend.clear()
                await asyncio.sleep(AWAY_SECONDS)
            except TimeoutError:
                if entry.is_acknowledged:
                    continue
            await self._try(entry)

    async def _try(self, entry: _Unsettled) -> None:
        try:
            await self.sender.send(entry.envelope)
        except FabricError as error:
            log.info("%s is not sent yet: %s", entry.envelope.id, error)

    def on_ack(self, ack: DeliveryAck) -> bool:
        entry = self._unsettled.get(ack.ref_id or "")
        if entry is None:
            return False
        if ack.ok:
            entry.is_acknowledged = True
            if not entry.expects_reply:
                self.settle(entry.envelope.id)
        elif ack.code in AWAY:
            entry.is_acknowledged = False
            entry.resend.set()
        else:
            self.settle(entry.envelope.id)
            return False
        return True

    def on_link_lost(self) -> None:
        """Send everything again: an acknowledged message may have been lost with its receiver."""
        for entry in self._unsettled.values():
            entry.is_acknowledged = False
            entry.resend.set()

    # --- receiving ---

    def receive(
        self, runner: Runner, handler: Handler, envelope: Envelope, data: Data, release: Release
    ) -> None:
        """Store a message, acknowledge it and run it, or repeat the answer that it had."""
        is_stream = envelope.rtype & ReplyType.STREAM
        if envelope.rtype & ReplyType.ACK and not is_stream:
            self._tasks.start(self._receive(runner, handler, envelope, data, release))
        else:
            super().receive(runner, handler, envelope, data, release)

    async def _receive(
        self, runner: Runner, handler: Handler, envelope: Envelope, data: Data, release: Release
    ) -> None:
        if envelope.id in self._storing:
            release()
            return
        self._storing.add(envelope.id)
        try:
            known = await self._inbox.get(envelope.id)
            if known is None:
                text = encode(envelope).decode()
                await self._inbox.set(envelope.id, ReceivedMessage(envelope=text))
        finally:
            self._storing.discard(envelope.id)
        self.sender.acknowledge(envelope, DeliveryAck(ok=True))
        if known is None:
            runner.start(handler, envelope, data, release)
            return
        release()
        if known.answer is not None:
            answer = decode(known.answer.encode())
            assert answer is not None
            answer.id, answer.to = new_id(), envelope.reply_to
            await self.sender.send(answer)

    async def record_answer(self, request: Envelope, answer: Envelope | None) -> None:
        if request.rtype & ReplyType.ACK and not request.rtype & ReplyType.STREAM:
            text = None if answer is None else encode(answer).decode()
            record = ReceivedMessage(envelope="", is_done=True, answer=text)
            await self._inbox.set(request.id, record, ttl=KEEP_ANSWERS_SECONDS)

    def resume(self, runner: Runner, handler: Handler, addresses: set[str]) -> None:
        for envelope in [each for each in self._unfinished if each.to in addresses]:
            self._unfinished.remove(envelope)
            if isinstance(envelope.frame, Data):
                runner.start(handler, envelope, envelope.frame, _nothing_to_release)


def _decoded(key: str, text: str) -> Envelope | None:
    """A stored message. What a peer once sent never keeps a node from starting."""
    try:
        return decode(text.encode())
    except ProtocolError as error:
        log.warning("the stored message %s cannot be read, and stays where it is: %s", key, error)
        return None


def _nothing_to_release() -> None:
    """The release of a message that comes from the inbox and not from a link."""
