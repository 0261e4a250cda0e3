"""The called side of a call: the requests that run on a node."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import msgspec
from msgspec import UNSET, Raw

from strongroom.errors import CallError, FabricError, MessageTooLarge, StreamStalled
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
    NULL,
    ErrorDetail,
    Handler,
    Request,
    Response,
    describe,
    describe_refusal,
    encode,
    read_request,
)
from strongroom.messaging.sender import Sender

MAX_RUNNING = 1024
UNREAD_STREAM_SECONDS = 300.0
"""Seconds for which a stream waits for a reader who has stopped reading."""

log = logging.getLogger(__name__)


class IncomingCalls:
    """The requests that run on this node."""

    def __init__(self, sender: Sender, delivery: AtMostOnce) -> None:
        self._sender = sender
        self._delivery = delivery
        self._running: dict[str, asyncio.Task[None]] = {}
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

    def _on_done(self, key: str, _task: asyncio.Task[None]) -> None:
        del self._running[key]
        if self._queue:
            self.start(*self._queue.popleft())

    def cancel(self, corr_id: str | None) -> None:
        """The caller is gone: stop what is running for it."""
        task = self._running.get(corr_id or "")
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Cancel everything, and wait until all of it has ended."""
        self._queue.clear()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, handler: Handler, envelope: Envelope, data: Data) -> None:
        try:
            request = read_request(data.payload)
        except msgspec.MsgspecError:
            await self._receive(handler, data)
            await self._delivery.record_answer(envelope, None)
            return
        try:
            await self._answer(handler, envelope, request)
        except StreamStalled as error:
            await self._nack(envelope, NackCode.STREAM_STALLED, error)
        except MessageTooLarge as error:
            await self._nack(envelope, NackCode.MESSAGE_TOO_LARGE, error)
        except FabricError as error:
            log.warning("The answer to %s() was not sent: %s", request.method, error)

    async def _receive(self, handler: Handler, data: Data) -> None:
        try:
            await handler.receive(data.payload)
        except Exception:
            log.exception("A message was not handled")

    async def _answer(self, handler: Handler, envelope: Envelope, request: Request) -> None:
        wants_stream = bool(envelope.rtype & ReplyType.STREAM)
        try:
            answer = handler.invoke(request.method, request.params)
        except CallError as error:
            await self._reply(envelope, request, error=describe_refusal(error))
            return
        if isinstance(answer, AsyncGenerator):
            await self._answer_items(envelope, request, answer, all_of_them=wants_stream)
            return
        try:
            result = await answer
        except Exception as error:
            log.info("%s() raised", request.method, exc_info=True)
            await self._reply(envelope, request, error=describe(error))
            return
        await self._reply(envelope, request, result)
        if wants_stream:
            await self._reply(envelope, request)

    async def _answer_items(
        self,
        envelope: Envelope,
        request: Request,
        items: AsyncGenerator[bytes, None],
        *,
        all_of_them: bool,
    ) -> None:
        async with aclosing(items):
            while True:
                error = None
                try:
                    item = await anext(items, None)
                except Exception as raised:
                    log.info("%s() raised", request.method, exc_info=True)
                    item, error = None, describe(raised)
                if item == NULL:
                    error = ErrorDetail(
                        -32603, "The stream yielded None, which marks the end of a stream in FAME"
                    )
                is_last = item is None or error is not None or not all_of_them
                await self._reply(envelope, request, item, error=error, is_last=is_last)
                if is_last:
                    return

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

    async def _nack(self, envelope: Envelope, code: str, error: FabricError) -> None:
        if envelope.reply_to is None:
            return
        nack = DeliveryAck(ok=False, code=code, reason=str(error), ref_id=envelope.id)
        reply = Envelope(to=envelope.reply_to, corr_id=envelope.corr_id, frame=nack)
        try:
            await self._sender.send(reply, STALL_SECONDS)
        except FabricError as failure:
            log.warning("could not tell %s: %s", envelope.reply_to, failure)
