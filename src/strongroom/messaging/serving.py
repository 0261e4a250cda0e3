"""The called side of a call: the requests that run on a node."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from types import TracebackType
from typing import Self

import msgspec
from msgspec import UNSET, Raw

from strongroom.errors import MessageTooLarge, StreamStalled, StrongroomError
from strongroom.messaging.address import new_id
from strongroom.messaging.delivery import AtMostOnce
from strongroom.messaging.envelope import (
    Data,
    DeliveryAck,
    Envelope,
    FlowFlag,
    NackCode,
    ReplyType,
)
from strongroom.messaging.flow import STALL_SECONDS, Release
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
from strongroom.peers_log import peers_log
from strongroom.settings import Settings

MAX_RUNNING = 1024
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


class IncomingCalls:
    """The requests that run on this node."""

    def __init__(self, sender: Sender, delivery: AtMostOnce, settings: Settings) -> None:
        self._sender = sender
        self._delivery = delivery
        self._shows_messages = settings.show_errors == "message"
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[Handler, Envelope, Data, Release]] = deque()
        self._context = contextvars.copy_context()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, handler: Handler, envelope: Envelope, data: Data, release: Release) -> None:
        """Run a request, or take a plain message. When too many are running, it waits."""
        if len(self._running) >= MAX_RUNNING:
            self._queue.append((handler, envelope, data, release))
            return
        release()
        key = new_id() if envelope.corr_id in self._running else envelope.corr_id or new_id()
        task = asyncio.get_running_loop().create_task(
            self._run(handler, envelope, data), context=self._context.copy()
        )
        self._running[key] = task
        task.add_done_callback(partial(self._on_done, key))

    def _on_done(self, key: str, task: asyncio.Task[None]) -> None:
        del self._running[key]
        self._ended.discard(task)
        if self._queue:
            self.start(*self._queue.popleft())

    def cancel(self, corr_id: str | None) -> None:
        """The caller is gone: stop what is running for it."""
        task = self._running.get(corr_id or "")
        if task is not None:
            self._end(task)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ended.add(task)
        task.cancel()

    async def stop(self) -> None:
        """Cancel everything, and wait until all of it has ended."""
        self._queue.clear()
        tasks = list(self._running.values())
        for task in tasks:
            self._end(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, handler: Handler, envelope: Envelope, data: Data) -> None:
        try:
            request = read_request(data.payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            if envelope.rtype & (ReplyType.REPLY | ReplyType.STREAM):
                text = f"The request cannot be read: {error}"
                request = Request("", id=envelope.corr_id)
                await self._reply(envelope, request, error=ErrorDetail(INVALID_REQUEST, text))
                return
            with _Caught("on_message", self._ended):
                await handler.receive(data.payload)
            await self._delivery.record_answer(envelope, None)
            return
        try:
            await self._answer(handler, envelope, request)
        except StreamStalled as error:
            await self._nack(envelope, NackCode.STREAM_STALLED, str(error))
        except MessageTooLarge as error:
            text = f"The result of {request.method}() is too large: {error}"
            await self._nack(envelope, NackCode.MESSAGE_TOO_LARGE, text)
        except StrongroomError as error:
            log.warning("The answer to %s() was not sent: %s", request.method, error)

    async def _answer(self, handler: Handler, envelope: Envelope, request: Request) -> None:
        """Run an operation, and send its one end: a result, the end of a stream, or an error."""
        answer = result = None
        with _Caught(request.method, self._ended) as caught:
            answer = handler.invoke(request.method, request.params)
            caught.has_begun = True
            if not isinstance(answer, AsyncGenerator):
                result = await answer
        if isinstance(answer, AsyncGenerator):
            await self._answer_items(envelope, request, answer)
            return
        await self._reply(envelope, request, result, error=caught.error)
        if envelope.rtype & ReplyType.STREAM and caught.error is None:
            await self._reply(envelope, request)

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
        if envelope.reply_to is None:
            return
        if error is not None and not self._shows_messages:
            error = without_message(error, request.method)
        has_result = error is None and result is not None and result != NULL
        response = Response(request.id, Raw(result) if has_result and result else UNSET, error)
        corr_id = envelope.corr_id or str(request.id)
        reply = Envelope(
            trace_id=envelope.trace_id,
            to=envelope.reply_to,
            corr_id=corr_id,
            frame=Data(payload=Raw(encode(response))),
        )
        if envelope.rtype & ReplyType.STREAM:
            # A flow to itself, so that a reader who pauses holds up no other; and an address, so
            # that a node that cannot deliver an item can tell us.
            reply.flow_id = corr_id
            reply.flow_flags = FlowFlag.RESET if is_last else 0
            reply.reply_to = self._sender.sys_address
        else:
            await self._delivery.record_answer(envelope, reply)
        await self._sender.send(reply, UNREAD_STREAM_SECONDS if reply.flow_id else STALL_SECONDS)

    async def _nack(self, envelope: Envelope, code: str, reason: str) -> None:
        if envelope.reply_to is None:
            return
        nack = DeliveryAck(ok=False, code=code, reason=reason, ref_id=envelope.id)
        reply = Envelope(to=envelope.reply_to, corr_id=envelope.corr_id, frame=nack)
        try:
            await self._delivery.record_answer(envelope, reply)
            await self._sender.send(reply, STALL_SECONDS)
        except StrongroomError as failure:
            log.warning("could not tell %s: %s", envelope.reply_to, failure)
