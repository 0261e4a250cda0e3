"""Random sequences of calls have the same results on every provider as on a dict."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from strongroom.errors import KeyMissing, RevisionConflict
from strongroom.settings import StorageSettings
from strongroom.storage import Feature, KeyValueStore
from strongroom.testing import ManualClock
from strongroom.testing.trial import Make


class Item(BaseModel):
    n: int


@dataclass
class Held:
    """A record as the model knows it."""

    n: int
    revision: int
    created: int
    expires: int | None


class Model:
    """What a store should do, on a plain dictionary. Revisions are taken from the real store."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self._held: dict[str, Held] = {}

    def alive(self) -> dict[str, Held]:
        now = self.clock()
        self._held = {k: h for k, h in self._held.items() if not h.expires or h.expires > now}
        return dict(sorted(self._held.items(), key=lambda item: item[0].encode()))

    def revision(self, key: str) -> int:
        held = self.alive().get(key)
        return held.revision if held else 0

    def put(self, key: str, n: int, revision: int, expires: int | None) -> None:
        old = self.alive().get(key)
        self._held[key] = Held(n, revision, old.created if old else self.clock(), expires)

    def drop(self, key: str) -> bool:
        existed = key in self.alive()
        self._held.pop(key, None)
        return existed


KEYS = st.sampled_from(["a", "a%", "ab", "b", "\ue000", "😀", "\U0010ffff"])
NUMBERS = st.integers(-5, 5)
TTLS = st.none() | st.sampled_from([1, 2.5, 60])
CONDITIONS = st.sampled_from(["none", "right", "wrong", "absent"])
WRITES = st.lists(st.tuples(KEYS, st.none() | NUMBERS, TTLS), min_size=1, max_size=4)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, NUMBERS, TTLS, CONDITIONS),
        st.tuples(st.just("delete"), KEYS, CONDITIONS),
        st.tuples(st.just("update"), KEYS, NUMBERS),
        st.tuples(st.just("modify"), KEYS, st.none() | NUMBERS),
        st.tuples(st.just("set_many"), st.dictionaries(KEYS, NUMBERS), TTLS),
        st.tuples(st.just("delete_many"), st.lists(KEYS)),
        st.tuples(st.just("transaction"), st.lists(KEYS), WRITES, st.none() | KEYS),
        st.tuples(st.just("advance"), st.sampled_from([0.5, 1, 1.5, 60])),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


class Sequence:
    """Takes the steps on a provider and on the model, and compares what each gives."""

    def __init__(self, make_provider: Any, directory: Path) -> None:
        self.clock = ManualClock()
        self.model = Model(self.clock)
        self._make: Any = lambda: make_provider(StorageSettings(directory=directory), self.clock)
        self._last = 0

    async def run(self, steps: list[tuple[Any, ...]]) -> None:
        await self._open()
        try:
            for name, *arguments in steps:
                await getattr(self, name)(*arguments)
                await self.compare()
        finally:
            await self.provider.close()

    async def _open(self) -> None:
        self.provider = self._make()
        await self.provider.start()
        self.store: KeyValueStore[Item] = await self.provider.get_kv_store(Item, "items")

    def _grows(self, revision: int) -> int:
        assert revision > self._last
        self._last = revision
        return revision

    def _condition(self, key: str, condition: str) -> int | None:
        held = self.model.revision(key)
        return {"none": None, "right": held, "wrong": held + 1000, "absent": 0}[condition]

    async def set(self, key: str, n: int, ttl: float | None, condition: str) -> None:
        expected = self._condition(key, condition)
        try:
            revision = await self.store.set(key, Item(n=n), ttl=ttl, if_revision=expected)
        except RevisionConflict as conflict:
            assert conflict.found == self.model.revision(key) != expected
        else:
            assert expected in (None, self.model.revision(key))
            self.model.put(key, n, self._grows(revision), self._expires(ttl))

    async def delete(self, key: str, condition: str) -> None:
        expected = self._condition(key, condition)
        try:
            deleted = await self.store.delete(key, if_revision=expected)
        except RevisionConflict as conflict:
            assert conflict.found == self.model.revision(key) != expected
        else:
            assert expected in (None, self.model.revision(key))
            assert deleted == self.model.drop(key)

    async def update(self, key: str, n: int) -> None:
        held = self.model.alive().get(key)
        try:
            revision = await self.store.update(key, Item(n=n))
        except KeyMissing:
            assert held is None
        else:
            assert held is not None
            self.model.put(key, n, self._grows(revision), held.expires)

    async def modify(self, key: str, default: int | None) -> None:
        held = self.model.alive().get(key)
        start = Item(n=default) if default is not None else None
        try:
            item = await self.store.modify(key, lambda item: Item(n=item.n + 1), default=start)
        except KeyMissing:
            assert held is None
            assert default is None
        else:
            before = held.n if held else default
            assert before is not None
            assert item.n == before + 1
            entry = await self.store.entry(key)
            assert entry is not None
            expires = held.expires if held else None
            self.model.put(key, item.n, self._grows(entry.revision), expires)

    async def set_many(self, values: dict[str, int], ttl: float | None) -> None:
        items = {key: Item(n=n) for key, n in values.items()}
        for key, revision in (await self.store.set_many(items, ttl=ttl)).items():
            self.model.put(key, values[key], self._grows(revision), self._expires(ttl))

    async def delete_many(self, keys: list[str]) -> None:
        deleted = await self.store.delete_many(keys)
        assert deleted == sum([self.model.drop(key) for key in set(keys)])

    async def transaction(self, reads: list[str], writes: Any, between: str | None) -> None:
        """Read, write, and let somebody else write the key `between` meanwhile."""
        before = self.model.alive()
        clash = between in reads
        try:
            async with self.store.transaction() as transaction:
                for key in reads:
                    item = await transaction.get(key)
                    assert (item and item.n) == (before[key].n if key in before else None)
                for key, n, ttl in writes:
                    if n is None:
                        await transaction.delete(key)
                    else:
                        await transaction.set(key, Item(n=n), ttl=ttl)
                    item = await transaction.get(key)
                    assert (item and item.n) == n
                if between is not None:
                    revision = await self.store.set(between, Item(n=99))
                    self.model.put(between, 99, self._grows(revision), None)
        except RevisionConflict as conflict:
            assert clash
            assert conflict.key == between
        else:
            assert not clash
            for key, n, ttl in {write[0]: write for write in writes}.values():
                if n is None:
                    self.model.drop(key)
                else:
                    entry = await self.store.entry(key)
                    assert entry is not None
                    revision = entry.revision
                    assert revision > self._last
                    self.model.put(key, n, revision, self._expires(ttl))
            self._last = max([self._last, *(h.revision for h in self.model.alive().values())])

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def reopen(self) -> None:
        if Feature.DURABLE in (await self.provider.open("items")).features:
            await self.provider.close()
            await self._open()

    def _expires(self, ttl: float | None) -> int | None:
        return None if ttl is None else self.clock() + round(ttl * 1e6)

    async def compare(self) -> None:
        held = self.model.alive()
        found = {
            entry.key: Held(entry.value.n, entry.revision, entry.created_us, entry.expires_us)
            async for entry in self.store.scan()
        }
        assert found == held
        assert list(found) == list(held)
        assert [key async for key in self.store.keys(reverse=True)] == list(held)[::-1]
        assert {key: item.n for key, item in (await self.store.list("a")).items()} == {
            key: h.n for key, h in held.items() if key.startswith("a")
        }
        assert await self.store.count() == len(held)


def run(make_provider: Any, steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(Sequence(make_provider, Path(directory) / "data").run(steps))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_every_sequence_gives_what_the_model_gives(
    make_provider: Make, steps: list[tuple[Any, ...]]
) -> None:
    run(make_provider, steps)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_many_more_sequences_give_what_the_model_gives(
    make_provider: Make, steps: list[tuple[Any, ...]]
) -> None:
    run(make_provider, steps)
