"""Batches of writes. What comes while a batch is under way gathers, and goes in the next one."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import asyncpg
import msgspec

from strongroom.errors import RevisionConflict, StorageError, StoreUnavailable
from strongroom.storage.postgres.connections import Connections
from strongroom.storage.records import Clock, Write

BATCH_WRITES = 512
BATCH_BYTES = 4 * 1024 * 1024
SECOND_LANE = 128
"""Waiting calls that are worth a second batch: it waits for the lock while the first commits."""
LANES = 2

Outcome = list[int] | StorageError


class Apply(msgspec.Struct, gc=False):
    """One waiting `apply`, and until when it waits."""

    writes: Sequence[Write]
    checks: Mapping[str, int]
    future: asyncio.Future[list[int]]
    deadline: float
    only_sets: bool
    """Whether it only stores values, without conditions, and so cannot fail."""


class Namespace(msgspec.Struct):
    """What a batch needs to know of its namespace."""

    name: str
    id: int
    epoch: int
    newest: int
    """The highest revision that this process has seen acknowledged."""


class CommitListener(Protocol):
    """Hears of what was committed."""

    def on_commit(self) -> None:
        """The namespace's `newest` has changed."""

    def refusal(self, error: asyncpg.PostgresError) -> StorageError:
        """Why the functions in the schema refused a batch."""


class Writer:
    """The writes of one namespace. A batch is one call, one round trip and one commit."""

    def __init__(
        self,
        connections: Connections,
        space: str,
        namespace: Namespace,
        clock: Clock,
        listener: CommitListener,
    ) -> None:
        self._connections = connections
        self._put = f'SELECT "{space}".put_1($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)'
        self._apply = (
            f'SELECT "{space}".apply_1($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15)'
        )
        self._namespace = namespace
        self._clock = clock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Apply] = deque()
        self._lanes: list[asyncio.Task[None] | None] = [None] * LANES
        self._ids = [secrets.token_bytes(16) for _ in range(LANES)]
        self._batches = [0] * LANES

    def submit(
        self, writes: Sequence[Write], checks: Mapping[str, int] | None
    ) -> asyncio.Future[list[int]]:
        """Queue an `apply`; the future has its revisions once they are durable."""
        future: asyncio.Future[list[int]] = self._loop.create_future()
        deadline, only_sets = self._connections.deadline(), _only_sets(writes, checks)
        self._waiting.append(Apply(writes, checks or {}, future, deadline, only_sets))
        if len(self._waiting) == 1 and None in self._lanes:
            self._loop.call_soon(self._begin)  # with what else comes in this turn
        return future

    async def finish(self) -> None:
        """Wait until nothing is queued or under way."""
        self._begin()
        while tasks := [task for task in self._lanes if task is not None]:
            await asyncio.wait(tasks)

    def _begin(self) -> None:
        for lane, task in enumerate(self._lanes):
            enough = SECOND_LANE if lane else 1
            if task is None and len(self._waiting) >= enough:
                self._lanes[lane] = self._loop.create_task(self._work(lane))

    async def _work(self, lane: int) -> None:
        """Send one batch after the other, as long as enough is waiting."""
        try:
            while len(self._waiting) >= (SECOND_LANE if lane else 1):
                wave = _take(self._waiting)
                if not lane:
                    self._begin()
                if wave:
                    await self._store(wave, lane)
        finally:
            self._lanes[lane] = None

    async def _store(self, wave: list[Apply], lane: int) -> None:
        self._batches[lane] += 1
        namespace = self._namespace
        head = (namespace.id, namespace.epoch, namespace.newest)
        batch = (*head, self._ids[lane], self._batches[lane], self._clock())
        sets = all(each.only_sets for each in wave)
        statement = self._put if sets else self._apply
        arguments = _values(wave) if sets else _groups(wave)
        outcomes: list[Outcome]
        try:
            [[result]] = await self._connections.fetch(
                statement, *batch, *arguments, deadline=wave[0].deadline
            )
        except asyncpg.PostgresError as error:
            outcomes = [self._listener.refusal(error)] * len(wave)
        except StorageError as error:
            outcomes = [error] * len(wave)
        except BaseException as error:
            for each in wave:
                if not each.future.done():
                    each.future.set_exception(StoreUnavailable(f"The batch failed: {error!r}."))
            raise
        else:
            outcomes = _outcomes(wave, result)
            namespace.newest = max(namespace.newest, result[0] + arguments[0])
            self._listener.on_commit()
        for each, outcome in zip(wave, outcomes, strict=True):
            if each.future.done():
                continue  # cancelled
            if isinstance(outcome, list):
                each.future.set_result(outcome)
            else:
                each.future.set_exception(outcome)


def _only_sets(writes: Sequence[Write], checks: Mapping[str, int] | None) -> bool:
    return not checks and all(write.value is not None and write.expect is None for write in writes)


def _take(waiting: deque[Apply]) -> list[Apply]:
    """The next batch, up to the first `apply` that must see what an earlier one of it did."""
    wave: list[Apply] = []
    written: set[str] = set()
    compared: set[str] = set()
    writes = size = 0
    while waiting:
        each = waiting[0]
        if each.future.done():  # cancelled, and not stored at all
            waiting.popleft()
            continue
        keys = {write.key for write in each.writes}
        size += sum(len(write.value or b"") for write in each.writes)
        writes += len(each.writes)
        looked_at = set(each.checks) if each.only_sets else keys | set(each.checks)
        meets = keys & compared or looked_at & written
        if wave and (meets or writes > BATCH_WRITES or size > BATCH_BYTES):
            break
        written |= keys
        compared |= looked_at
        wave.append(waiting.popleft())
    return wave


def _values(wave: list[Apply]) -> tuple[Any, ...]:
    """What `put_1` takes. Of several values of one key only the last is stored."""
    writes = [write for each in wave for write in each.writes]
    last = {write.key: place for place, write in enumerate(writes, 1)}
    kept = [writes[place - 1] for place in last.values()]
    return (
        len(writes),
        list(last.values()),
        [write.key.encode() for write in kept],
        [write.expires for write in kept],
        [write.value for write in kept],
    )


def _groups(wave: list[Apply]) -> tuple[Any, ...]:
    """What `apply_1` takes; each `apply` is a group."""
    writes = [(group, write) for group, each in enumerate(wave) for write in each.writes]
    conditions = [
        (group, key, revision)
        for group, each in enumerate(wave)
        for key, revision in _conditions(each)
    ]
    return (
        len(writes),
        [group for group, _, _ in conditions],
        [key.encode() for _, key, _ in conditions],
        [revision for _, _, revision in conditions],
        [group for group, _ in writes],
        list(range(1, len(writes) + 1)),
        [write.key.encode() for _, write in writes],
        [write.expires for _, write in writes],
        [write.value for _, write in writes],
    )


def _conditions(each: Apply) -> list[tuple[str, int]]:
    own = [(write.key, write.expect) for write in each.writes if write.expect is not None]
    return [*own, *each.checks.items()]


def _outcomes(wave: list[Apply], result: list[int]) -> list[Outcome]:
    """The outcome of each `apply`, from what the function returned."""
    head, found = result[0], iter(result[1:])
    if len(result) == 1:
        conflicts: list[RevisionConflict | None] = [None] * len(wave)
    else:
        conflicts = [_conflict(_conditions(each), found) for each in wave]
    outcomes: list[Outcome] = []
    place = head
    for each, conflict in zip(wave, conflicts, strict=True):
        revisions = []
        for _ in each.writes:
            place += 1
            revisions.append(place if next(found, 1) else 0)
        outcomes.append(conflict or revisions)
    return outcomes


def _conflict(conditions: list[tuple[str, int]], found: Any) -> RevisionConflict | None:
    conflict = None
    for key, expected in conditions:
        revision = next(found)
        if revision != expected and conflict is None:
            conflict = RevisionConflict(key, expected=expected, found=revision)
    return conflict
