"""Answers that take their time: they end when the client has gone.

Streams are server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

QUIET_SECONDS = 1.0
"""Seconds after which an answer that is not ready looks whether its client is still there."""

T = TypeVar("T")


def event(data: bytes, kind: str = "") -> bytes:
    """One event with JSON as its data."""
    # In JSON, line breaks are only white space between values.
    line = b"data: " + data.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n\n"
    return f"event: {kind}\n".encode() + line if kind else line


def streamed(events: AsyncGenerator[bytes, None], request: Request) -> StreamingResponse:
    """The answer to `request` that sends events, and closes them when nobody reads any more."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _while_read(events, request), media_type="text/event-stream", headers=headers
    )


async def unless_gone(work: Awaitable[T], request: Request) -> T:
    """Await `work`, which is cancelled when the client has closed the connection.

    Raises:
        ClientDisconnect: It has.
    """
    task = asyncio.ensure_future(work)
    try:
        while not await _is_done(task, request):
            pass
        return task.result()
    finally:
        await _end(task)


async def _while_read(
    events: AsyncGenerator[bytes, None], request: Request
) -> AsyncIterator[bytes]:
    async with aclosing(events):
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                while not await _is_done(coming, request):
                    yield b":\n\n"  # a comment: proxies close what is silent
            except ClientDisconnect:
                return
            finally:
                await _end(coming)
            if (found := coming.result()) is None:
                return
            yield found


async def _is_done(task: asyncio.Future[Any], request: Request) -> bool:
    done, _ = await asyncio.wait([task], timeout=QUIET_SECONDS)
    if not done and await request.is_disconnected():
        raise ClientDisconnect
    return bool(done)


async def _end(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
