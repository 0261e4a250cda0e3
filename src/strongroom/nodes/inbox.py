"""The receiving half of at-least-once delivery: messages that were acknowledged, until handled."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from strongroom.background import BackgroundTasks
from strongroom.errors import FabricError, ProtocolError, StorageError
from strongroom.messaging.address import new_id, source_of
from strongroom.messaging.delivery import Runner, Work, has_room
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, NackCode, decode, encode
from strongroom.messaging.places import Places
from strongroom.messaging.sender import Sender
from strongroom.messaging.stored import DeadLetter, Direction, ReceivedMessage, read_message
from strongroom.nodes.dead_letters import DeadLetters
from strongroom.nodes.stubborn import StubbornWrites
from strongroom.settings import Settings
from strongroom.storage.typed import Set

if TYPE_CHECKING:
    from strongroom.storage.records import Batch
    from strongroom.storage.typed import Entry, KeyValueStore

MAX_UNHANDLED = 10_000
MAX_ANSWERS = 50_000
KEEP_ANSWERS_SECONDS = 600.0
KEEP_UNHANDLED = timedelta(days=1)
"""A message for an address that nobody has bound again for so long is set aside."""
MAX_REASON_CHARACTERS = 500

log = logging.getLogger(__name__)


class _Unhandled(NamedTuple):
    """A message that was acknowledged and is not handled yet."""

    envelope: Envelope
    data: Data
    message: ReceivedMessage


class Inbox:
    """Stores each message before it is acknowledged, and sees that it is handled.

    A record belongs to the node that sent the message: another node's message with the same id is
    another message.
    """

    def __init__(
        self,
        sender: Sender,
        store: KeyValueStore[ReceivedMessage],
        dead_letters: DeadLetters,
        settings: Settings,
        writes: StubbornWrites,
    ) -> None:
        self._sender = sender
        self._store = store
        self._dead_letters = dead_letters
        self._attempts = settings.delivery_attempts
        self._pause_seconds = settings.delivery_pause_seconds
        self._room = Places(MAX_UNHANDLED)
        self._storing: set[str] = set()
        self._running: dict[str, _Unhandled] = {}
        self._waiting: dict[str, _Unhandled] = {}
        self._answered: dict[str, None] = {}
        self._writes = writes
        self._tasks = BackgroundTasks("a message was not received")
        self._pauses = BackgroundTasks("a message was not tried again")

    async def stop(self) -> None:
        """Finish what is being stored. What waits to run again does so after the next start."""
        await self._pauses.cancel()
        await self._tasks.finish()

    # --- messages that arrive ---

    def receive(self, runner: Runner, work: Work) -> None:
        """Store a message, acknowledge it and run it, or repeat the answer that it had."""
        self._tasks.start(self._receive(runner, work))

    async def _receive(self, runner: Runner, work: Work) -> None:
        envelope, key = work.envelope, _key(work.envelope)
        if key in self._storing:
            work.release()
            return
        self._storing.add(key)
        try:
            known = await self._store.get(key)
            if known is None and not await self._accept(runner, key, work):
                work.release()
                return
        except StorageError as error:  # not acknowledged, so its sender sends it again
            log.warning("a message cannot be stored: %s", error)
            work.release()
            return
        finally:
            self._storing.discard(key)
        self._sender.acknowledge(envelope, DeliveryAck(ok=True))
        if known is None:
            runner.start(work)
            return
        work.release()
        if known.answer is not None:
            await self._repeat(envelope, known.answer)
        elif key in self._running:  # its sender may have another path now
            self._running[key].envelope.reply_to = envelope.reply_to

    async def _accept(self, runner: Runner, key: str, work: Work) -> bool:
        envelope = work.envelope
        source = source_of(envelope.reply_to)
        if runner.refuses(envelope):
            return False
        if not has_room(self._room, source, envelope, self._sender):
            return False
        message = ReceivedMessage(envelope=encode(envelope).decode())
        self._room.take(source)
        try:
            await self._store.set(key, message)
        except BaseException:
            self._room.leave(source)
            raise
        self._running[key] = _Unhandled(envelope, work.data, message)
        return True

    async def _repeat(self, envelope: Envelope, text: str) -> None:
        answer = decode(text.encode())
        if answer is not None:
            answer.id, answer.to = new_id(), envelope.reply_to
            await self._sender.send(answer)

    # --- messages that have run ---

    async def record_answer(self, request: Envelope, answer: Envelope | None) -> None:
        """A message is handled: keep its answer, for the case that it is repeated."""
        key, record = _key(request), _done(answer)
        try:
            await self._record(key, record)
        except StorageError as error:  # the caller gets it nevertheless
            log.warning("an answer cannot be stored yet: %s", error)
            self._writes.start(partial(self._record, key, record))

    async def _record(self, key: str, record: ReceivedMessage) -> None:
        await self._store.set(key, record, ttl=KEEP_ANSWERS_SECONDS)
        self._finish(key)

    def answer_batch(self, request: Envelope, answer: Envelope | None) -> Batch:
        """The same as a part of a unit; `finish` follows."""
        return self._store.batch([Set(_key(request), _done(answer), ttl=KEEP_ANSWERS_SECONDS)])

    async def finish(self, request: Envelope) -> None:
        """The answer to a message is stored."""
        self._finish(_key(request))

    def _finish(self, key: str) -> None:
        handled = self._running.pop(key, None)
        if handled is not None:
            self._room.leave(source_of(handled.envelope.reply_to))
        self._answered[key] = None
        if len(self._answered) > MAX_ANSWERS:
            oldest = next(iter(self._answered))
            del self._answered[oldest]
            self._writes.start(partial(self._store.delete, oldest))

    def on_failure(self, runner: Runner, work: Work, reason: str) -> None:
        """The handler raised: run it again after a pause, or set the message aside."""
        self._pauses.start(self._try_again(runner, work, reason))

    async def _try_again(self, runner: Runner, work: Work, reason: str) -> None:
        key = _key(work.envelope)
        unhandled = self._running[key]
        attempts = unhandled.message.attempts
        if attempts >= self._attempts:
            aside = partial(self._set_aside, key, unhandled.message, unhandled.envelope, reason)
            await self._writes.until_stored(aside)
            return
        unhandled.message.reasons.append(reason[:MAX_REASON_CHARACTERS])
        await asyncio.sleep(self._pause_seconds * 2 ** (attempts - 1))
        await self._run_again(runner, key, unhandled, work)

    async def _run_again(self, runner: Runner, key: str, unhandled: _Unhandled, work: Work) -> None:
        unhandled.message.attempts += 1
        await self._writes.until_stored(partial(self._store.set, key, unhandled.message))
        runner.start(work._replace(release=_nothing_to_release))

    # --- messages of the last run ---

    async def take_up(self) -> None:
        """Find what was acknowledged and is not handled. What can never be is set aside."""
        async for entry in self._store.scan():
            if entry.value.is_done:
                self._answered[entry.key] = None
            else:
                await self._take_up(entry)

    async def _take_up(self, entry: Entry[ReceivedMessage]) -> None:
        message = await self._store.get(entry.key)  # it may be handled since the scan has read it
        is_known = any(entry.key in keys for keys in (self._storing, self._running, self._waiting))
        if is_known or message is None or message.is_done:
            return
        try:
            envelope, data = read_message(message.envelope)
        except ProtocolError as error:
            await self._set_aside(entry.key, message, None, f"It cannot be read: {error}")
            return
        if message.attempts >= self._attempts:
            problem = f"It was cut short in the last of {message.attempts} attempts"
        elif datetime.now(UTC) - entry.created > KEEP_UNHANDLED:
            problem = f"Nobody bound its address for {KEEP_UNHANDLED}"
        else:
            self._room.take(source_of(envelope.reply_to))
            self._waiting[entry.key] = _Unhandled(envelope, data, message)
            return
        await self._set_aside(entry.key, message, envelope, problem)

    def resume(self, runner: Runner) -> None:
        """Run those of them that have a handler now."""
        for key, unhandled in list(self._waiting.items()):
            handler = self._sender.bindings.find(unhandled.envelope)
            if handler is not None:
                self._running[key] = self._waiting.pop(key)
                work = Work(handler, unhandled.envelope, unhandled.data, _nothing_to_release)
                self._pauses.start(self._run_again(runner, key, unhandled, work))

    async def _set_aside(
        self, key: str, message: ReceivedMessage, envelope: Envelope | None, reason: str
    ) -> None:
        reasons = [*message.reasons, reason[:MAX_REASON_CHARACTERS]]
        letter = DeadLetter(
            direction=Direction.RECEIVED,
            envelope=message.envelope,
            attempts=message.attempts,
            reasons=reasons,
        )
        await self._dead_letters.add(key, letter)
        if envelope is None:
            await self._store.delete(key)
            return
        reason = f"The message was set aside after {message.attempts} attempts: {reasons[-1]}"
        nack = DeliveryAck(ok=False, code=NackCode.SET_ASIDE, reason=reason, ref_id=envelope.id)
        answer = Envelope(to=envelope.reply_to, corr_id=envelope.corr_id, frame=nack)
        await self.record_answer(envelope, answer)
        try:
            self._sender.acknowledge(envelope, nack)
        except FabricError as error:
            log.info("the sender of message %s is not told: %s", key, error)


def _key(envelope: Envelope) -> str:
    """The key of a message's record: a digest, since a peer may choose any id."""
    whose = f"{source_of(envelope.reply_to)}\n{envelope.id}"
    return hashlib.blake2b(whose.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _done(answer: Envelope | None) -> ReceivedMessage:
    text = None if answer is None else encode(answer).decode()
    return ReceivedMessage(envelope="", is_done=True, answer=text)


def _nothing_to_release() -> None:
    """The release of a message that comes from the inbox and not from a link."""
