"""A limit on the time that a block may take."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """Ends a block with TimeoutError after `seconds`, as `asyncio.timeout` does.

    It is entered with `with`, without a coroutine, and so costs a third: each call has one.
    """

    __slots__ = ("_cancelled_before", "_is_over", "_loop", "_seconds", "_task", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop  # asking for the running one takes a system call, on Python 3.11
        self._seconds = seconds
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled_before = 0
        self._is_over = False

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task(self._loop)
        assert task is not None
        self._cancelled_before = task.cancelling()
        self._timer = self._loop.call_later(self._seconds, self._end, task)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        if not self._is_over:
            return
        assert self._task is not None
        others = self._task.uncancel() > self._cancelled_before
        if kind is asyncio.CancelledError and not others:
            raise TimeoutError from error

    def _end(self, task: asyncio.Task[object]) -> None:
        self._is_over = True
        task.cancel()
