"""Writes that must succeed in the end, on a disk that may refuse them for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from strongroom.background import BackgroundTasks
from strongroom.errors import StorageError

STORE_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


class StubbornWrites:
    """Tries each write until it succeeds, or until the grace period of a stopping node ends."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._ends_at = 0.0
        self._is_stopping = asyncio.Event()
        self._tasks = BackgroundTasks("the node has stopped, and this was not stored")

    def start(self, write: Callable[[], Awaitable[object]]) -> None:
        """Write in the background."""
        self._tasks.start(self.until_stored(write))

    async def until_stored(self, write: Callable[[], Awaitable[object]]) -> None:
        """Write, and return when it has succeeded.

        Raises:
            StorageError: The node has stopped, and the disk still refuses.
        """
        while True:
            try:
                await write()
            except StorageError as error:
                is_over = asyncio.get_running_loop().time() >= self._ends_at
                if self._is_stopping.is_set() and is_over:
                    raise
                log.warning("this cannot be stored yet: %s", error)
                await self._pause()
            else:
                return

    async def _pause(self) -> None:
        if self._is_stopping.is_set():
            await asyncio.sleep(STORE_AGAIN_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(STORE_AGAIN_SECONDS):
                await self._is_stopping.wait()

    async def stop(self) -> None:
        """Try what waits once more at once, and then until the grace period ends."""
        self._ends_at = asyncio.get_running_loop().time() + self._grace_seconds
        self._is_stopping.set()
        await self._tasks.finish()
