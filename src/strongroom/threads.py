"""Work on threads that is always awaited to its end, even when its caller is cancelled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from strongroom.errors import StorageError, StoreForked

P = ParamSpec("P")
T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Await `work` to its end. If the caller is cancelled meanwhile, that is raised afterwards.

    A thread cannot be stopped. A caller that left before it would give up its locks, and let the
    next caller in while the thread is still at work.
    """
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # otherwise asyncio logs that nobody has retrieved it
    raise cancelled


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raise StorageError unless `loop` is running here."""
    if asyncio.get_running_loop() is not loop:
        raise StorageError(
            "This storage was opened in another event loop.",
            remedy="open a provider in this one, or asyncio.run_coroutine_threadsafe",
        )


class Threads:
    """A few threads for work that waits for the disk.

    >>> threads = Threads(8)
    >>> size = await threads.run(os.path.getsize, "notes.db")
    """

    def __init__(self, count: int) -> None:
        """No thread is started before it is needed; `count` is the largest number of them."""
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="strongroom")
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on a thread, and `finish` it."""
        loop = self.check_caller()
        return await finish(loop.run_in_executor(self._executor, lambda: function(*args, **kwargs)))

    async def open(self, make: Callable[[], T], close: Callable[[T], object]) -> T:
        """Call `make` on a thread. If the caller is cancelled meanwhile, `close` what was made."""
        made: list[T] = []
        try:
            await self.run(lambda: made.append(make()))
        except asyncio.CancelledError:
            for each in made:
                await self.run(close, each)
            raise
        return made[0]

    def check_caller(self) -> asyncio.AbstractEventLoop:
        """The running event loop, which must always be the same one.

        Raises:
            StoreForked: This process is a child of the one that made this object.
            StorageError: Another event loop came first.
        """
        if os.getpid() != self._process:
            raise StoreForked(
                "This storage was opened before this process was forked.",
                remedy="open a provider in the child",
            )
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        check_loop(self._loop)
        return loop

    def close(self) -> None:
        """End the threads. Closing twice does nothing."""
        self._executor.shutdown()
