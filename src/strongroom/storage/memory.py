"""The provider `memory`: it keeps records in the process, and is the model for tests of others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from sortedcontainers import SortedDict, SortedSet

from strongroom.errors import RevisionConflict, StoreClosed, WatchExpired
from strongroom.settings import StorageSettings
from strongroom.storage.keys import prefix_end
from strongroom.storage.provider import StorageProvider, check_batches
from strongroom.storage.records import (
    PAGE_BYTES,
    PAGE_RECORDS,
    TOMBSTONE_AGE,
    TOMBSTONE_COUNT,
    Batch,
    Changes,
    Clock,
    Feature,
    Page,
    Record,
    RecordChange,
    RecordStore,
    Write,
    check_namespace,
    system_clock,
)


class MemoryProvider(StorageProvider):
    """Keeps namespaces as long as the provider lives: for tests, and for data that may be lost.

    >>> provider = MemoryProvider(StorageSettings())
    """

    def __init__(
        self, settings: StorageSettings | None = None, clock: Clock = system_clock
    ) -> None:
        super().__init__(settings or StorageSettings(), clock)
        self._stores: dict[str, MemoryStore] = {}
        self._closed = False

    async def open(self, namespace: str) -> MemoryStore:
        if self._closed:
            raise StoreClosed("The provider is closed.", namespace=namespace)
        namespace = check_namespace(namespace, self._stores)
        store = self._stores.get(namespace)
        if store is None or store.closed:
            store = self._stores[namespace] = MemoryStore(namespace, self.clock)
        return store

    async def apply_together(self, batches: Sequence[Batch]) -> None:
        await asyncio.sleep(0)
        check_batches(batches)
        stores = [await self.open(batch.namespace) for batch in batches]
        for store, batch in zip(stores, batches, strict=True):
            store.check(batch.writes, batch.checks)
        for store, batch in zip(stores, batches, strict=True):
            store.store(batch.writes)

    async def namespaces(self) -> list[str]:
        return sorted(self._stores)

    async def drop(self, namespace: str) -> None:
        if self._closed:
            raise StoreClosed("The provider is closed.", namespace=namespace)
        if store := self._stores.pop(check_namespace(namespace), None):
            await store.close()

    async def close(self) -> None:
        self._closed = True
        for store in self._stores.values():
            await store.close()


class MemoryStore(RecordStore):
    """One namespace in a sorted dictionary.

    Python compares strings by code point, which is the order of their UTF-8 bytes.
    """

    features = frozenset(Feature) - {Feature.DURABLE}

    def __init__(self, namespace: str, clock: Clock) -> None:
        self.closed = False
        self._namespace = namespace
        self._clock = clock
        self._revision = 0
        self._records: SortedDict[str, Record] = SortedDict()
        self._expiring: SortedSet[tuple[int, str]] = SortedSet()
        # The latest change of each key, by revision; and those that are deletions, oldest first.
        self._log: SortedDict[int, RecordChange] = SortedDict()
        self._tombstones: dict[str, tuple[int, int]] = {}  # key: revision and time
        self._forgotten = 0  # revision of the newest deletion no longer remembered
        self._changed = asyncio.Event()

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        if self.closed or self._expiring:  # otherwise nothing can have expired
            self._expire()
        return [self._records.get(key) for key in keys]

    async def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = PAGE_RECORDS,
        max_bytes: int | None = PAGE_BYTES,
        reverse: bool = False,
        values: bool = True,
    ) -> Page:
        await asyncio.sleep(0)  # like a real store, let other tasks run
        self._expire()
        records: list[Record] = []
        room = max_bytes
        for key in self._range(prefix, after, reverse=reverse):
            record = self._records[key]
            if not values:
                record = Record(
                    key, b"", record.revision, record.created, record.updated, record.expires
                )
            if room is not None:
                room -= len(record.value)
            if records and (len(records) == limit or (room is not None and room < 0)):
                return Page(records, more=True)
            records.append(record)
        return Page(records, more=False)

    async def count(self, prefix: str = "") -> int:
        self._expire()
        end = prefix_end(prefix)
        last = len(self._records) if end is None else self._records.bisect_left(end)
        return last - self._records.bisect_left(prefix)

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        await asyncio.sleep(0)  # like a real store, let other tasks run first
        self.check(writes, checks)
        return self.store(writes)

    def check(self, writes: Sequence[Write], checks: Mapping[str, int] | None) -> None:
        """Raise RevisionConflict unless all conditions hold."""
        self._expire()
        conditions = [(write.key, write.expect) for write in writes if write.expect is not None]
        for key, expected in (*conditions, *(checks or {}).items()):
            record = self._records.get(key)
            found = record.revision if record else 0
            if found != expected:
                raise RevisionConflict(key, expected=expected, found=found)

    def store(self, writes: Sequence[Write]) -> list[int]:
        """Do `writes`, whose conditions hold."""
        now = self._expire()
        revisions = [self._store(write, now) for write in writes]
        self._wake()
        return revisions

    async def touch(self, key: str, expires: int | None) -> bool:
        await asyncio.sleep(0)  # like a real store, let other tasks run first
        self._expire()
        old = self._records.get(key)
        if old is None:
            return False
        record = Record(key, old.value, old.revision, old.created, old.updated, expires)
        self._records[key] = record
        self._log[old.revision] = RecordChange(key, old.revision, record)
        if old.expires is not None:
            self._expiring.remove((old.expires, key))
        if expires is not None:
            self._expiring.add((expires, key))
        self._wake()  # those who wait until the next expiry
        return True

    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        self._expire()
        if after is None:
            return Changes([], self._revision)
        if after > self._revision or (after and max(after, since or 0) < self._forgotten):
            raise WatchExpired(
                f"The changes in {self._namespace!r} after revision {after} are no longer known.",
                remedy="list the records, and watch from now on",
            )
        while True:
            page = self._changes_after(after, prefix, limit)
            if page.changes:
                return page
            after = page.cursor  # no change before this revision matters to the caller
            await self._wait()
            self._expire()

    async def close(self) -> None:
        self.closed = True
        self._wake()

    def _expire(self) -> int:
        """Delete expired records, and return the current time."""
        if self.closed:
            raise StoreClosed(f"{self._namespace!r} is closed.", namespace=self._namespace)
        now = self._clock()
        if self._expiring and self._expiring[0][0] <= now:
            while self._expiring and self._expiring[0][0] <= now:
                self._delete(self._expiring[0][1], now)
            self._wake()
        return now

    def _store(self, write: Write, now: int) -> int:
        if write.value is None:
            return self._delete(write.key, now)
        old = self._remove(write.key)
        self._revision += 1
        created = old.created if old else now
        record = Record(write.key, write.value, self._revision, created, now, write.expires)
        self._records[write.key] = record
        self._log[self._revision] = RecordChange(write.key, self._revision, record)
        if write.expires is not None:
            self._expiring.add((write.expires, write.key))
        return self._revision

    def _delete(self, key: str, now: int) -> int:
        if key not in self._records:
            return 0
        self._remove(key)
        self._revision += 1
        self._log[self._revision] = RecordChange(key, self._revision, None)
        self._tombstones[key] = (self._revision, now)
        self._forget(now)
        return self._revision

    def _remove(self, key: str) -> Record | None:
        """Remove a key from every table, and return its record if it had one."""
        record = self._records.pop(key, None)
        if record is not None:
            del self._log[record.revision]
            if record.expires is not None:
                self._expiring.remove((record.expires, key))
        elif tombstone := self._tombstones.pop(key, None):
            del self._log[tombstone[0]]
        return record

    def _forget(self, now: int) -> None:
        while self._tombstones:
            key, (revision, when) = next(iter(self._tombstones.items()))
            if when > now - TOMBSTONE_AGE and len(self._tombstones) <= TOMBSTONE_COUNT:
                return
            del self._tombstones[key], self._log[revision]
            self._forgotten = revision

    def _range(self, prefix: str, after: str | None, *, reverse: bool) -> Iterator[str]:
        first, last = prefix, prefix_end(prefix)
        if after is not None and reverse:
            last = after if last is None else min(last, after)
        elif after is not None and after >= first:
            return self._within(after, last, (False, False), reverse=reverse)
        return self._within(first, last, (True, False), reverse=reverse)

    def _within(
        self, first: str, last: str | None, inclusive: tuple[bool, bool], *, reverse: bool
    ) -> Iterator[str]:
        if last is not None and last < first:
            return iter(())
        return self._records.irange(first, last, inclusive, reverse)

    def _changes_after(self, after: int, prefix: str, limit: int) -> Changes:
        changes: list[RecordChange] = []
        room = PAGE_BYTES
        for revision in self._log.irange(after, None, (False, True)):
            change = self._log[revision]
            if not change.key.startswith(prefix):
                continue
            room -= len(change.record.value) if change.record else 0
            if changes and (len(changes) == limit or room < 0):
                return Changes(changes, changes[-1].revision)
            changes.append(change)
        return Changes(changes, self._revision)

    async def _wait(self) -> None:
        """Wait for a change, or until the next record expires."""
        changed, seconds = self._changed, None
        if self._expiring:  # at most a second, since the clock may be set meanwhile
            seconds = min(1.0, max(0.0, (self._expiring[0][0] - self._clock()) / 1e6))
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
