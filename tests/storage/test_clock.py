"""A clock set forward and back: every call tells the same of a record, and watchers learn of it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from strongroom.settings import StorageSettings
from strongroom.storage import Feature, StorageProvider, Write
from strongroom.storage.sqlite.store import SqliteStore
from strongroom.testing import ManualClock
from strongroom.testing.trial import Make

KEYS = st.sampled_from(["a", "b", "c"])
SECONDS = st.sampled_from([1, 5, 60])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.none() | SECONDS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("touch"), KEYS, st.none() | SECONDS),
        st.tuples(st.just("modify"), KEYS),
        st.tuples(st.just("watch")),
        st.tuples(st.just("move"), SECONDS),
        st.tuples(st.just("move"), SECONDS.map(lambda seconds: -seconds)),
    ),
    max_size=20,
)


class Item(BaseModel):
    n: int = 0


class Sequence:
    """Takes steps, and asks after each of them in every way which records there are."""

    def __init__(self, provider: StorageProvider, clock: ManualClock) -> None:
        self._clock = clock
        self._provider = provider
        self._cursor = 0
        self._watched: dict[str, bytes] = {}

    async def run(self, steps: list[tuple[Any, ...]]) -> None:
        self._store = await self._provider.open("items")
        self._items = await self._provider.get_kv_store(Item, "items")
        for name, *arguments in [*steps, ("watch",)]:
            async with asyncio.timeout(5):
                await getattr(self, name)(*arguments)
            await self.compare()

    async def set(self, key: str, ttl: float | None) -> None:
        await self._items.set(key, Item(), ttl=ttl)

    async def delete(self, key: str) -> None:
        await self._items.delete(key)
        now = self._clock.now
        for self._clock.now in (now - 100_000_000, now):
            assert await self._items.get(key) is None, "it was deleted, whatever the time is"

    async def touch(self, key: str, ttl: float | None) -> None:
        if Feature.TOUCH in self._store.features:
            was_there = await self._items.get(key) is not None
            assert await self._items.touch(key, ttl) == was_there

    async def modify(self, key: str) -> None:
        await self._items.modify(key, lambda item: Item(n=item.n + 1), default=Item())

    async def move(self, seconds: float) -> None:
        self._clock.advance(seconds)

    async def watch(self) -> None:
        """Read what changed, up to a last write; it is what is there now."""
        [last] = await self._store.apply([Write("last", b"")])
        while self._cursor < last:
            found = await self._store.changes(self._cursor)
            self._cursor = found.cursor
            for change in found.changes:
                self._watched.pop(change.key, None)
                if change.record is not None:
                    self._watched[change.key] = change.record.value
        page = await self._store.scan()
        assert self._watched == {record.key: record.value for record in page.records}

    async def compare(self) -> None:
        scanned = (await self._store.scan()).records
        there = {record.key for record in scanned}
        read = await self._store.read(["a", "b", "c", "last"])
        assert [record for record in read if record] == scanned
        assert await self._store.count() == len(there)
        for key in "abc":
            assert (await self._items.entry(key) is not None) == (key in there)


@contextlib.asynccontextmanager
async def opened(make: Make, directory: Path, clock: ManualClock) -> AsyncIterator[StorageProvider]:
    provider = make(StorageSettings(directory=directory / "data"), clock)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.close()


async def take(make: Make, steps: list[tuple[Any, ...]]) -> None:
    clock = ManualClock()
    with tempfile.TemporaryDirectory() as directory:
        async with opened(make, Path(directory), clock) as provider:
            await Sequence(provider, clock).run(steps)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_all_calls_agree_on_a_record_wherever_the_clock_moves(
    make_provider: Make, steps: list[tuple[Any, ...]]
) -> None:
    asyncio.run(take(make_provider, steps))


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_all_calls_agree_in_many_more_sequences(
    make_provider: Make, steps: list[tuple[Any, ...]]
) -> None:
    asyncio.run(take(make_provider, steps))


async def test_a_record_that_expired_stays_away_when_the_clock_is_set_back(
    make_provider: Make, tmp_path: Path
) -> None:
    clock = ManualClock()
    async with opened(make_provider, tmp_path, clock) as provider:
        store = await provider.open("items")
        items = await provider.get_kv_store(Item, "items")
        await items.set("a", Item(), ttl=1)
        assert await items.get("a") == Item()
        cursor = (await store.changes(None)).cursor
        clock.advance(2)
        assert [change.record for change in (await store.changes(cursor)).changes] == [None]
        clock.advance(-2)
        assert await items.get("a") is None
        assert await items.count() == 0
        async with asyncio.timeout(5):
            assert await items.modify("a", lambda item: item, default=Item(n=7)) == Item(n=7)


@pytest.mark.parametrize("make_provider", ["sqlite", "encrypted-sqlite"], indirect=True)
async def test_no_expiry_is_forgotten_when_the_event_loop_was_busy(
    make_provider: Make, tmp_path: Path
) -> None:
    """A record with a time is committed after a sweep, and the loop hears of both in one turn."""
    clock = ManualClock()
    async with opened(make_provider, tmp_path, clock) as provider:
        store = await provider.open("items")
        assert isinstance(store, SqliteStore)
        await store.apply([Write("a", b"", clock() + 1_000_000)])
        clock.advance(2)
        done = threading.Event()
        sweep = asyncio.create_task(store.sweep(clock()))
        write = asyncio.create_task(store.apply([Write("b", b"", clock() + 1_000_000)]))
        last = asyncio.create_task(store.connections.run_on_writer(lambda _: done.set()))
        for _ in range(3):
            await asyncio.sleep(0)
        done.wait(5)  # the event loop does nothing until the writer has done all of it
        await asyncio.gather(sweep, write, last)
        clock.advance(2)
        cursor = (await store.changes(None)).cursor
        async with asyncio.timeout(5):
            [change] = (await store.changes(cursor)).changes
        assert (change.key, change.record) == ("b", None)
