"""How many stores are open at once: each takes descriptors, and a process may have only so many.

A store that was closed here opens again at its next use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator
from typing import Protocol

from strongroom.errors import StorageError

DESCRIPTORS_PER_STORE = 8
"""What a store takes for its writer and its reader, and then for some scans."""
MOST_OPEN = 1000
"""An open store also takes a thread and memory."""
OPENING_AT_ONCE = 8
WAIT_SECONDS = 1.0
WAITS = 200

log = logging.getLogger(__name__)


class Closable(Protocol):
    """The connections to one store."""

    was_used: bool

    async def close_if_idle(self) -> None:
        """Close them, unless they are in use."""


def most_open() -> int:
    """How many stores may be open: half of the descriptors are left to everything else."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST_OPEN
    return max(1, min(MOST_OPEN, limit // 2 // DESCRIPTORS_PER_STORE))


def raise_descriptor_limit() -> None:
    """Raise the process's limit of descriptors as far as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses a limit without end
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class OpenFiles:
    """The stores that are open, in the order in which they were opened or last found in use."""

    def __init__(self) -> None:
        self._open: dict[Closable, None] = {}
        self._being_opened = 0
        self._turns = asyncio.Semaphore(OPENING_AT_ONCE)

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Close stores that were not used lately until the block has room to open one."""
        async with self._turns:
            await self._make_room()
            self._being_opened += 1
            try:
                yield
            finally:
                self._being_opened -= 1

    def opened(self, store: Closable) -> None:
        """Note that `store` is open."""
        self._open[store] = None

    def closed(self, store: Closable) -> None:
        """Note that `store` is not open any more."""
        self._open.pop(store, None)

    def is_open(self, store: Closable) -> bool:
        """Whether `store` is open."""
        return store in self._open

    def _has_room(self) -> bool:
        return len(self._open) + self._being_opened < most_open()

    async def _make_room(self) -> None:
        """If all are in use, wait for one; but not for long, as a watch may keep it for days."""
        for _ in range(WAITS):
            await self._close_unused()
            if self._has_room():
                return
            await asyncio.sleep(WAIT_SECONDS / WAITS)

    async def _close_unused(self) -> None:
        for store in [*self._open, *self._open]:  # a store that was used has a second chance
            if self._has_room():
                return
            if not self.is_open(store):
                continue
            if store.was_used:
                store.was_used = False
                self._open[store] = self._open.pop(store)
            else:
                await _close(store)


async def _close(store: Closable) -> None:
    try:
        await store.close_if_idle()
    except StorageError as error:  # it is the other store's, whose next use reports it
        log.warning("%s", error)
