"""Work on threads that is always awaited to its end, even when its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

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


class Threads:
    """A few threads for work that waits for the disk.

    >>> threads = Threads(8)
    >>> size = await threads.run(os.path.getsize, "notes.db")
    """

    def __init__(self, count: int) -> None:
        """No thread is started before it is needed; `count` is the largest number of them."""
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="strongroom")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on a thread, and `finish` it."""
        loop = asyncio.get_running_loop()
        return await finish(loop.run_in_executor(self._executor, lambda: function(*args, **kwargs)))

    def close(self) -> None:
        """End the threads. Closing twice does nothing."""
        self._executor.shutdown()
