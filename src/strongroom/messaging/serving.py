"""The called side of a call: the requests that run on a node."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from types import AsyncGeneratorType, TracebackType
from typing import Self, cast

import msgspec
from msgspec import UNSET, Raw, Struct

from strongroom.errors import MessageTooLarge, StreamStalled, StrongroomError
from strongroom.messaging.address import REPLIES, SYSTEM, source_of
from strongroom.messaging.delivery import AtMostOnce, Work
from strongroom.messaging.envelope import (
    Data,
    DeliveryAck,
    Envelope,
    FlowFlag,
    NackCode,
    ReplyType,
)
from strongroom.messaging.envelope import encode as encode_envelope
from strongroom.messaging.flow import STALL_SECONDS
from strongroom.messaging.link import check_size
from strongroom.messaging.places import Place, Places, own_place
from strongroom.messaging.rpc import (
    INVALID_REQUEST,
    NULL,
    OPERATION_FAILED,
    ErrorDetail,
    Handler,
    Request,
    Response,
    describe,
    encode,
    read_request,
    without_message,
)
from strongroom.messaging.sender import Sender
from strongroom.messaging.unit import Unit
from strongroom.peers_log import peers_log
from strongroom.settings import Settings

READER_CHECK_SECONDS = 2.0
"""Seconds after which a stream on which nothing was sent asks whether its reader is still there."""
UNREAD_STREAM_SECONDS = 300.0
"""Seconds for which a stream waits for a reader who has stopped reading."""

log = peers_log(__name__)


class _Caught:
    """Keeps whatever leaves a handler, as the error that its caller gets.

    `SystemExit` and `CancelledError` are included, unless it is our own task that is being ended.

    Args:
        method: The name of the operation that the handler runs.
        ended: The tasks that we have cancelled.
        has_begun: The operation is running already.
    """

    def __init__(
        self, method: str, ended: set[asyncio.Task[None]], *, has_begun: bool = False
    ) -> None:
        self._ended = ended
        self.error: ErrorDetail | None = None
        self.has_begun = has_begun
        self._method = method

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        if error is None or (not isinstance(error, Exception) and self._is_ended()):
            return False
        self.error = describe(error, self._method, has_begun=self.has_begun)
        level = logging.INFO if self._method != "on_message" else logging.ERROR
        trace = error if log.isEnabledFor(logging.DEBUG) else None
        log.log(level, "%s() raised %s", self._method, self.error.message, exc_info=trace)
        return True

    def _is_ended(self) -> bool:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the event loop has ended, and Python closes what is left
            return True
        return task is None or task in self._ended


class _Reader(Struct):
    """Who reads a stream, by the request, and the task that runs it."""

    envelope: Envelope
    task: asyncio.Task[None]
    is_quiet: bool = False
    """Nothing was sent since the last check."""


class IncomingCalls:
    """The requests that run on this node."""

    def __init__(self, sender: Sender, delivery: AtMostOnce, settings: Settings) -> None:
        self._sender = sender
        self._delivery = delivery
        self._shows_messages = settings.show_errors == "message"
        self._grace_seconds = settings.stop_grace_seconds
        self._calls = Places(settings.max_running_calls)
        self._streams = Places(settings.max_open_streams)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: set[asyncio.Task[None]] = set()
        self._readers: dict[str, _Reader] = {}
        self._last_messages: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_leaving = False
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._tasks)

    def refuses(self, envelope: Envelope) -> bool:
        """Whether a call cannot run now. Its caller is told why."""
        if self._is_leaving and envelope.rtype:
            code = NackCode.NODE_LEAVING
            reason = "The agent's node is stopping; the call did not run."
        elif envelope.rtype & ReplyType.CALL and not (places := self._places(envelope)).has_room(
            source_of(envelope.reply_to)
        ):
            what = "streams" if places is self._streams else "calls"
            code = NackCode.BUSY
            reason = f"{places.taken} {what} run on the agent's node; this one did not run."
        else:
            return False
        self._sender.acknowledge(envelope, DeliveryAck(ok=False, code=code, reason=reason))
        return True

    def start(self, work: Work) -> None:
        """Run a request, or take a plain message. When too many are running, it waits.

        Plain messages of one node to one handler are taken one after the other.
        """
        envelope = work.envelope
        is_stream = bool(envelope.rtype & ReplyType.STREAM)
        if is_stream and envelope.corr_id in self._readers:  # a repeated request
            work.release()
            return
        source = source_of(envelope.reply_to)
        place = Place(self._places(envelope), source, envelope.trace_id, takes_unit=not is_stream)
        is_plain = not (envelope.rtype & ReplyType.CALL or _is_from_caller(envelope))
        turn = (id(work.handler), source)
        before = self._last_messages.get(turn) if is_plain else None
        if before is None and place.take_if_free():
            work.release()
        task = self._loop.create_task(self._run(work, place, before), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(partial(self._on_done, place, envelope.corr_id or ""))
        if is_plain:
            self._last_messages[turn] = task
            task.add_done_callback(partial(self._on_taken, turn))
        if is_stream and envelope.corr_id and envelope.reply_to:
            self._readers[envelope.corr_id] = _Reader(envelope, task)
            if self._timer is None:
                self._timer = self._loop.call_later(READER_CHECK_SECONDS, self._check_readers)

    def _places(self, envelope: Envelope) -> Places:
        return self._streams if envelope.rtype & ReplyType.STREAM else self._calls

    def _on_done(self, place: Place, corr_id: str, task: asyncio.Task[None]) -> None:
        place.leave()
        self._tasks.discard(task)
        self._ended.discard(task)
        if (reader := self._readers.get(corr_id)) is not None and reader.task is task:
            del self._readers[corr_id]

    def _on_taken(self, turn: tuple[int, str], task: asyncio.Task[None]) -> None:
        if self._last_messages.get(turn) is task:
            del self._last_messages[turn]

    def cancel(self, corr_id: str | None) -> None:
        """The reader of a stream is gone: stop what is running for it."""
        reader = self._readers.get(corr_id or "")
        if reader is not None:
            self._end(reader.task)

    def on_link_lost(self) -> None:
        """End the streams whose readers were beyond the link: they have got an error."""
        for reader in self._readers.values():
            if not (reader.envelope.reply_to or "").endswith(f"@{self._sender.bindings.path}"):
                self._end(reader.task)

    def _check_readers(self) -> None:
        """Ask after the readers of streams on which nothing was sent for a while.

        If one is gone, its node or the sentinel says so.
        """
        self._timer = None
        for corr_id, reader in self._readers.items():
            if reader.is_quiet:
                to = f"{SYSTEM}@{(reader.envelope.reply_to or '').partition('@')[2]}"
                ack = DeliveryAck(ok=True, ref_id=reader.envelope.id)
                probe = Envelope(
                    to=to, corr_id=corr_id, reply_to=self._sender.sys_address, frame=ack
                )
                if not self._sender.send_now(probe):
                    self._end(reader.task)
            reader.is_quiet = True
        if self._readers:
            self._timer = self._loop.call_later(READER_CHECK_SECONDS, self._check_readers)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ended.add(task)
        task.cancel()

    async def stop(self) -> None:
        """Refuse new calls, let those that run finish within the grace period, and end the rest."""
        self._is_leaving = True
        others = self._tasks - {asyncio.current_task()}
        try:
            if others and self._grace_seconds:
                await asyncio.wait(others, timeout=self._grace_seconds)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            left = self._tasks - {asyncio.current_task()}
            for task in left:
                self._end(task)
            await asyncio.gather(*left, return_exceptions=True)

    async def _run(self, work: Work, place: Place, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        if not place.is_taken:
            await place.wait()
            work.release()
        own_place.set(place)
        handler, envelope, data, _ = work
        try:
            request = read_request(data.payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            if envelope.rtype & ReplyType.CALL:
                text = f"The request cannot be read: {error}"
                request = Request("", id=envelope.corr_id)
                await self._reply(envelope, request, error=ErrorDetail(INVALID_REQUEST, text))
            else:
                await self._take(work, place)
            return
        try:
            await self._answer(handler, envelope, request, place)
        except StreamStalled as error:
            await self._nack(envelope, NackCode.STREAM_STALLED, str(error))
        except MessageTooLarge as error:
            text = f"The result of {request.method}() is too large: {error}"
            await self._nack(envelope, NackCode.MESSAGE_TOO_LARGE, text)
        except StrongroomError as error:
            log.warning("The answer to %s() was not sent: %s", request.method, error)

    async def _take(self, work: Work, place: Place) -> None:
        with _Caught("on_message", self._ended) as caught:
            await work.handler.receive(work.data.payload)
            await self._delivery.record_answer(work.envelope, None, place.unit)
        if caught.error is not None:
            self._delivery.on_failure(self, work, caught.error.message)

    async def _answer(
        self, handler: Handler, envelope: Envelope, request: Request, place: Place
    ) -> None:
        """Run an operation, and send its one end: a result, the end of a stream, or an error."""
        items = result = None
        with _Caught(request.method, self._ended) as caught:
            answer = handler.invoke(request.method, request.params)
            caught.has_begun = True
            if isinstance(answer, AsyncGeneratorType):
                items = answer
            else:
                result = await cast("Awaitable[bytes]", answer)
        if items is not None:
            await self._answer_items(envelope, request, items)
            return
        if place.unit is not None and caught.error is None:
            await self._answer_with(place.unit, envelope, request, result)
            return
        await self._reply(envelope, request, result, error=caught.error)
        if envelope.rtype & ReplyType.STREAM and caught.error is None:
            await self._reply(envelope, request)

    async def _answer_with(
        self, unit: Unit, envelope: Envelope, request: Request, result: bytes | None
    ) -> None:
        """Store what an operation has done together with its answer, and then send that."""
        reply = self._reply_to(envelope, request, result, None)
        with _Caught(request.method, self._ended, has_begun=True) as caught:
            check_size(encode_envelope(reply))  # an answer that cannot be sent stores nothing
            await self._delivery.record_answer(envelope, reply, unit)
        if caught.error is not None:
            await self._reply(envelope, request, error=caught.error)
        elif envelope.reply_to is not None:
            await self._sender.send(reply, STALL_SECONDS)

    async def _answer_items(
        self, envelope: Envelope, request: Request, items: AsyncGenerator[bytes, None]
    ) -> None:
        is_last = False
        try:
            while not is_last:
                item = None
                with _Caught(request.method, self._ended, has_begun=True) as caught:
                    item = await anext(items, None)
                error = caught.error
                if item == NULL:
                    text = f"{request.method}() yielded None, which ends a stream in FAME"
                    error = ErrorDetail(OPERATION_FAILED, text)
                wants_one = not envelope.rtype & ReplyType.STREAM
                is_last = item is None or error is not None or wants_one
                await self._reply(envelope, request, item, error=error, is_last=is_last)
        finally:
            with _Caught(request.method, self._ended):
                await items.aclose()

    async def _reply(
        self,
        envelope: Envelope,
        request: Request,
        result: bytes | None = None,
        *,
        error: ErrorDetail | None = None,
        is_last: bool = False,
    ) -> None:
        is_plain = envelope.corr_id is None and not envelope.rtype & ReplyType.CALL
        if envelope.reply_to is None or is_plain:
            return
        reply = self._reply_to(envelope, request, result, error)
        if envelope.rtype & ReplyType.STREAM:
            # A flow to itself, so that a reader who pauses holds up no other; and an address, so
            # that a node that cannot deliver an item can tell us.
            reply.flow_id = reply.corr_id
            reply.flow_flags = FlowFlag.RESET if is_last else 0
            reply.reply_to = self._sender.sys_address
            if (reader := self._readers.get(reply.corr_id or "")) is not None:
                reader.is_quiet = False
        else:
            await self._delivery.record_answer(envelope, reply)
        await self._sender.send(reply, UNREAD_STREAM_SECONDS if reply.flow_id else STALL_SECONDS)

    def _reply_to(
        self,
        envelope: Envelope,
        request: Request,
        result: bytes | None,
        error: ErrorDetail | None,
    ) -> Envelope:
        if error is not None and not self._shows_messages:
            error = without_message(error, request.method)
        has_result = error is None and result is not None and result != NULL
        response = Response(request.id, Raw(result) if has_result and result else UNSET, error)
        return Envelope(
            trace_id=envelope.trace_id,
            to=envelope.reply_to,
            corr_id=envelope.corr_id or str(request.id),
            frame=Data(payload=Raw(encode(response))),
        )

    async def _nack(self, envelope: Envelope, code: str, reason: str) -> None:
        if envelope.reply_to is None:
            return
        nack = DeliveryAck(ok=False, code=code, reason=reason, ref_id=envelope.id)
        reply = Envelope(to=envelope.reply_to, corr_id=envelope.corr_id, frame=nack)
        if envelope.rtype & ReplyType.STREAM:  # after the items that were sent
            reply.flow_id, reply.flow_flags = envelope.corr_id, FlowFlag.RESET
        try:
            await self._delivery.record_answer(envelope, reply)
            await self._sender.send(reply, STALL_SECONDS)
        except StrongroomError as failure:
            log.warning("could not tell %s: %s", envelope.reply_to, failure)


def _is_from_caller(envelope: Envelope) -> bool:
    """Whether it was a call, also if nobody waits for its answer since its node has restarted."""
    return (envelope.reply_to or "").startswith(REPLIES)
