"""A store that fails on request, for tests of the code that uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from strongroom.errors import StoreUnavailable
from strongroom.storage import Changes, Page, Record, RecordStore, Write

T = TypeVar("T")


class FaultyStore(RecordStore):
    """Passes calls on to another store, and fails or delays those that a test chooses.

    >>> store = FaultyStore(await provider.open("notes"))
    >>> notes = KeyValueStore(store, Note, "notes")
    >>> store.reject("apply")
    >>> await notes.set("a", Note(text="x"))
    Traceback (most recent call last):
    strongroom.errors.StoreUnavailable: apply() was made to fail.
    """

    def __init__(self, store: RecordStore) -> None:
        self.features = store.features
        self.calls: list[str] = []
        """The names of the methods that were called, in order."""
        self._store = store
        self._rejected: list[tuple[str, Exception]] = []
        self._lost: list[tuple[str, Exception]] = []
        self._open = asyncio.Event()
        self._open.set()

    def reject(self, method: str, times: int = 1, error: Exception | None = None) -> None:
        """Let the next `times` calls of `method` raise `error` without doing anything."""
        self._rejected += [(method, error or _refused(method))] * times

    def lose_answer(self, method: str, times: int = 1, error: Exception | None = None) -> None:
        """Let the next `times` calls of `method` do their work, and raise `error` nevertheless."""
        self._lost += [(method, error or _refused(method))] * times

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let all calls wait until the end of the block."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        await self._before("read")
        return self._after("read", await self._store.read(keys))

    async def scan(self, prefix: str = "", **options: Any) -> Page:
        await self._before("scan")
        return self._after("scan", await self._store.scan(prefix, **options))

    async def count(self, prefix: str = "") -> int:
        await self._before("count")
        return self._after("count", await self._store.count(prefix))

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        await self._before("apply")
        return self._after("apply", await self._store.apply(writes, checks=checks))

    async def touch(self, key: str, expires: int | None) -> bool:
        await self._before("touch")
        return self._after("touch", await self._store.touch(key, expires))

    async def changes(self, after: int | None, **options: Any) -> Changes:
        await self._before("changes")
        return self._after("changes", await self._store.changes(after, **options))

    async def close(self) -> None:
        await self._store.close()

    async def _before(self, method: str) -> None:
        self.calls.append(method)
        await self._open.wait()
        _raise_next(self._rejected, method)

    def _after(self, method: str, answer: T) -> T:
        _raise_next(self._lost, method)
        return answer


def _refused(method: str) -> Exception:
    return StoreUnavailable(f"{method}() was made to fail.")


def _raise_next(faults: list[tuple[str, Exception]], method: str) -> None:
    for fault in faults:
        if fault[0] == method:
            faults.remove(fault)
            raise fault[1]
