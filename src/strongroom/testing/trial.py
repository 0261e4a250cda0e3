"""What the cases of the conformance suite work with: a provider, new names, and a manual clock."""

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
"""Makes a provider from settings and a clock: its class, or a function that configures it."""

SHOWN = 300  # characters of a value in the message of a failure

E = TypeVar("E", bound=BaseException)


class ManualClock:
    """A clock that moves only by `advance`.

    >>> clock = ManualClock()
    >>> clock.advance(60)
    """

    def __init__(self, now: int | None = None) -> None:
        self.now = time.time_ns() // 1000 if now is None else now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.now += round(seconds * 1e6)


class Trial:
    """The provider under test, for one case.

    Calling `make` again with the same settings must give a provider of the same data.
    """

    def __init__(self, make: Make, directory: Path) -> None:
        self.clock = ManualClock()
        self._make = make
        directory.mkdir(mode=0o700, parents=True)
        self._settings = StorageSettings(profile="conformance", directory=directory)
        self._names = uuid.uuid4().hex[:12]
        self._named = 0
        self.provider = make(self._settings, self.clock)

    async def start(self) -> None:
        """Start the provider."""
        await self.provider.start()

    async def restart(self) -> None:
        """Make the provider again, after it was closed, and start it."""
        self.provider = self._make(self._settings, self.clock)
        await self.start()

    async def reopen(self, namespace: str) -> RecordStore:
        """Restart the provider and open `namespace`."""
        await self.provider.close()
        await self.restart()
        return await self.provider.open(namespace)

    def name(self) -> str:
        """A new name for a namespace."""
        self._named += 1
        return f"Trial.{self._names}_{self._named}"

    async def store(self, **values: bytes) -> RecordStore:
        """A new namespace with `values`, written in their order."""
        store = await self.provider.open(self.name())
        await put(store, values.items())
        return store


@dataclass(frozen=True)
class Case:
    """One sentence of the contract, and the function that checks it."""

    name: str
    run: Callable[[Trial], Awaitable[None]]
    needs: frozenset[Feature]
    slow: bool


def case(
    *needs: Feature, slow: bool = False
) -> Callable[[Callable[[Trial], Awaitable[None]]], Case]:
    """Make a function a case. Its name is the sentence; it runs if `needs` are declared."""

    def make(run: Callable[[Trial], Awaitable[None]]) -> Case:
        name = getattr(run, "__name__", "").replace("_", " ")
        return Case(name, run, frozenset(needs), slow)

    return make


# --- shorthands for the cases ---------------------------------------------------------------------


async def put(store: RecordStore, items: Iterable[tuple[str, bytes]]) -> list[int]:
    """Write one after the other, since writing several at once needs ATOMIC."""
    return [(await store.apply([Write(key, value)]))[0] for key, value in items]


async def get(store: RecordStore, key: str) -> Record | None:
    """Read one record."""
    [record] = await store.read([key])
    return record


async def present(store: RecordStore, key: str) -> Record:
    """Read one record that must exist."""
    record = await get(store, key)
    if record is None:
        raise AssertionError(f"the record {key!r} is missing")
    return record


async def everything(store: RecordStore, prefix: str = "") -> dict[str, bytes]:
    """All records, as one snapshot."""
    page = await store.scan(prefix, limit=None, max_bytes=None)
    holds(not page.more, "a scan without limits has no more")
    return {record.key: record.value for record in page.records}


def same(found: Any, wanted: Any, what: str) -> None:
    """Fail unless both are equal. `assert` would show no values without a test framework."""
    if found != wanted:
        raise AssertionError(f"{what}: found {_short(found)}, expected {_short(wanted)}")


def holds(condition: object, what: str) -> None:
    """Fail unless `condition` is true; `what` is the condition in words."""
    if not condition:
        raise AssertionError(f"this does not hold: {what}")


@contextmanager
def raises(kind: type[E], what: str) -> Iterator[list[E]]:
    """Fail unless the block raises `kind`. The list returned then has the error."""
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
