"""What a case of the conformance suite works with: a provider, fresh names, and a clock to turn."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from strongroom.settings import StorageSettings
from strongroom.storage import Clock, Feature, Record, RecordStore, StorageProvider, Write

Make = Callable[[StorageSettings, Clock], StorageProvider]
"""Makes a provider: the provider's class itself, or a function that also sets it up."""

SHOWN = 300  # characters of a value in a failure's sentence

E = TypeVar("E", bound=BaseException)


class ManualClock:
    """A clock that stands still until it is turned.

    >>> clock = ManualClock()
    >>> clock.advance(60)
    """

    def __init__(self, now: int | None = None) -> None:
        self.now = time.time_ns() // 1000 if now is None else now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self.now += round(seconds * 1e6)


class Trial:
    """One provider for one case. Called `make` again on the same settings, it finds its data."""

    def __init__(self, make: Make, directory: Path) -> None:
        self.clock = ManualClock()
        self._make = make
        directory.mkdir(parents=True)
        self._settings = StorageSettings(profile="conformance", directory=directory)
        self._names = uuid.uuid4().hex[:12]
        self._named = 0
        self.provider: StorageProvider

    async def start(self) -> None:
        """Make the provider."""
        self.provider = self._make(self._settings, self.clock)
        await self.provider.start()

    async def reopen(self, namespace: str) -> RecordStore:
        """Close the provider, make it again, and open `namespace`, as a restart does."""
        await self.provider.close()
        await self.start()
        return await self.provider.open(namespace)

    def name(self) -> str:
        """A namespace that nobody has used."""
        self._named += 1
        return f"Trial.{self._names}_{self._named}"

    async def store(self, **values: bytes) -> RecordStore:
        """A fresh namespace that holds `values`, written in their order."""
        store = await self.provider.open(self.name())
        await put(store, values.items())
        return store


@dataclass(frozen=True)
class Case:
    """One sentence of the contract, and the function that tries it."""

    name: str
    run: Callable[[Trial], Awaitable[None]]
    needs: frozenset[Feature]
    slow: bool


ALL_CASES: list[Case] = []


def case(
    *needs: Feature, slow: bool = False
) -> Callable[[Callable[[Trial], Awaitable[None]]], Callable[[Trial], Awaitable[None]]]:
    """Make a case of a function whose name is its sentence; it runs where `needs` are declared."""

    def register(run: Callable[[Trial], Awaitable[None]]) -> Callable[[Trial], Awaitable[None]]:
        name = getattr(run, "__name__", "").replace("_", " ")
        ALL_CASES.append(Case(name, run, frozenset(needs), slow))
        return run

    return register


# --- shorthands for the cases ---------------------------------------------------------------------


async def put(store: RecordStore, items: Iterable[tuple[str, bytes]]) -> list[int]:
    """Write one after the other, since several at once need ATOMIC."""
    return [(await store.apply([Write(key, value)]))[0] for key, value in items]


async def get(store: RecordStore, key: str) -> Record | None:
    """Read one record."""
    [record] = await store.read([key])
    return record


async def present(store: RecordStore, key: str) -> Record:
    """Read one record that must be there."""
    record = await get(store, key)
    if record is None:
        raise AssertionError(f"the record {key!r} is missing")
    return record


async def everything(store: RecordStore, prefix: str = "") -> dict[str, bytes]:
    """All records, as one snapshot."""
    page = await store.scan(prefix, limit=None, max_bytes=None)
    holds(not page.more, "a scan without limits says that there is no more")
    return {record.key: record.value for record in page.records}


def same(found: Any, wanted: Any, what: str) -> None:
    """Fail unless both are equal. Not `assert`, which says nothing without a test framework."""
    if found != wanted:
        raise AssertionError(f"{what}: found {_short(found)}, expected {_short(wanted)}")


def holds(condition: object, what: str) -> None:
    """Fail unless `condition` is true; `what` says what should have been."""
    if not condition:
        raise AssertionError(f"not so: {what}")


@contextmanager
def raises(kind: type[E], what: str) -> Iterator[list[E]]:
    """Fail unless the block raises `kind`, which is then the one item of the list given."""
    raised: list[E] = []
    try:
        yield raised
    except kind as error:
        raised.append(error)
    else:
        raise AssertionError(f"{what}: {kind.__name__} was expected, and nothing was raised")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
