"""One namespace in one SQLite file.

Writes share commits. Single reads run on the event loop, everything longer on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence

import apsw

from strongroom.disk import database
from strongroom.errors import StoreDamaged, WatchExpired
from strongroom.storage.cache import RecordCache
from strongroom.storage.records import (
    PAGE_BYTES,
    PAGE_RECORDS,
    Batch,
    Changes,
    Feature,
    Page,
    Record,
    RecordStore,
    Write,
)
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.connections import Connections
from strongroom.storage.sqlite.files import StoreFiles
from strongroom.storage.sqlite.tables import READ_ON_THREAD
from strongroom.storage.sqlite.writer import Hold, Outcome, Waiting
from strongroom.threads import Threads

CACHE_BYTES = 16 * 1024 * 1024
CHECKED_AT_ONCE = 100_000  # steps of SQLite's virtual machine


class SqliteStore(RecordStore):
    """The records of one namespace. It is the listener of its own connections."""

    features = frozenset(Feature)

    def __init__(self, files: StoreFiles, namespace: str, threads: Threads) -> None:
        """Open nothing yet; the namespace's file exists."""
        self.namespace = namespace
        self.connections = Connections(files, namespace, threads, self)
        self.is_marked = True
        """Whether `__node_meta` remembers everything that was written."""
        self._threads = threads
        self._clock = files.clock
        self._cache = RecordCache(CACHE_BYTES)
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<SqliteStore {self.namespace!r} in {self.connections.path}>"

    # --- the contract -------------------------------------------------------------------------

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        connections = self.connections
        if connections.reader is None:
            await connections.open()
        connections.was_used = True
        found = []
        for key in keys:
            record = self._cache.get(key)
            if record is None or (record.expires is not None and record.expires <= self._clock()):
                record = self._read_inline(key)
                if record is READ_ON_THREAD:
                    record = await connections.run_read(tables.read_long, key, self._clock())
            else:
                self._cache.move_to_end(key)
            found.append(record)
        return found

    def _read_inline(self, key: str) -> Record | None:
        """One record, read on the event loop; `READ_ON_THREAD` if a thread must read it."""
        connections = self.connections
        if connections.reader is None:  # closed while an earlier key was read
            return READ_ON_THREAD
        try:
            found = tables.read(connections.reader, key, self._clock())
        except apsw.BusyError:
            return READ_ON_THREAD
        except apsw.Error as error:
            raise database.explain(error, connections.path, self.namespace) from error
        if found is not None and found is not READ_ON_THREAD:
            self._cache.put(found)
        return found

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
        return await self.connections.run_read(
            tables.scan,
            prefix,
            after=after,
            limit=limit,
            max_bytes=max_bytes,
            reverse=reverse,
            values=values,
            now=self._clock(),
        )

    async def count(self, prefix: str = "") -> int:
        return await self.connections.run_read(tables.count, prefix, self._clock())

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        connections = self.connections
        writer = connections.writer
        if writer is None or writer.broken:
            writer = await connections.open()
        connections.was_used = True
        submitted = writer.submit(writes, checks)
        connections.calls += 1  # until `on_commit`
        return await submitted

    async def apply_held(self, batch: Batch, hold: Hold) -> list[int]:
        """Do an `apply` in a transaction that ends as `hold` decides."""
        connections = self.connections
        writer = await connections.open()
        submitted = writer.submit_held(batch.writes, batch.checks, hold)
        connections.calls += 1  # until `on_commit`
        return await submitted

    async def touch(self, key: str, expires: int | None) -> bool:
        loop = asyncio.get_running_loop()

        def change(connection: apsw.Connection) -> bool:
            is_there = tables.touch(connection, key, expires, self._clock())
            loop.call_soon_threadsafe(self._on_touch, key)  # before later commits are reported
            return is_there

        self.connections.was_used = True
        return await self.connections.run_on_writer(change)

    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        connections = self.connections
        writer = await connections.open()
        if after is None:
            return Changes([], writer.revision)
        connections.calls += 1
        try:
            while True:
                changed = self._changed
                now = self._clock()
                await self.sweep(now)  # a record that is left out below has become a deletion
                found = await connections.run_read(
                    _changes, after, since=since, prefix=prefix, limit=limit, now=now
                )
                if found.changes:
                    return found
                after = found.cursor
                await changed.wait()
        finally:
            connections.calls -= 1

    async def close(self) -> None:
        await self.connections.close()

    # --- for the provider ---------------------------------------------------------------------

    async def sweep(self, now: int) -> None:
        """Turn records that have expired by `now` into deletions, if the file is open."""
        connections = self.connections
        while (writer := connections.writer) and not writer.broken and self._has_expired(now):
            connections.calls += 1  # until `on_commit`
            await writer.sweep(now)

    def _has_expired(self, now: int) -> bool:
        reader = self.connections.reader
        if reader is None:
            return False
        try:
            expiry = tables.next_expiry(reader)
        except apsw.BusyError:
            return False
        return expiry is not None and expiry <= now

    async def mark(self, stamp: bytes, known: bytes) -> int:
        """Write a new stamp into the file, beside the `known` one that `__node_meta` remembers.

        Returns the revision at which the store had this stamp.
        """
        await self.connections.open()
        self.is_marked = True  # a commit after the stamp makes it False again
        try:
            return await self.connections.run_on_writer(
                lambda connection: tables.mark(connection, stamp, known, self._clock())
            )
        except BaseException:
            self.is_marked = False
            raise

    async def compact(self) -> None:
        """Give back the space that deleted records have left."""
        connections = self.connections
        writer = await connections.open()
        connections.calls += 1
        try:
            await writer.compact()
        finally:
            connections.calls -= 1

    async def examine(self) -> None:
        """Read the whole file, while it is in use. If it is damaged, it is not used any longer."""
        connections = self.connections
        problems = None
        with contextlib.suppress(StoreDamaged):  # then it is condemned already
            while problems is None and not connections.is_closed:
                problems = await connections.run_on_fresh_connection(self._problems)
        if problems:
            await connections.condemn(problems[0])

    def _problems(self, connection: apsw.Connection) -> list[str] | None:
        """What is wrong with the file; None if it has to be closed meanwhile."""
        connection.set_progress_handler(self.connections.is_awaited, CHECKED_AT_ONCE)
        try:
            return tables.problems(connection)
        except apsw.InterruptError:
            return None

    async def snapshot(self, prefix: str = "") -> AsyncGenerator[Sequence[Record], None]:
        """All records whose keys begin with `prefix`, as of one moment, page by page.

        Read it quickly and to the end: until then the write-ahead log grows, and a rotation waits.
        """
        now = self._clock()
        async with self.connections.fresh_connection() as connection:
            connection.execute("BEGIN")
            after = None
            while True:
                page = await self._threads.run(
                    tables.scan, connection, prefix, now=now, after=after
                )
                if page.records:
                    yield page.records
                    after = page.records[-1].key
                if not page.more:
                    return
                if self.connections.is_closed:
                    self.connections.refuse_closed()

    # --- what the connections report ----------------------------------------------------------

    def on_open(self, *, is_marked: bool) -> None:
        self.is_marked = is_marked

    def on_commit(self, batch: list[Waiting], outcomes: list[Outcome], now: int) -> None:
        self.connections.calls -= len(batch)
        self.is_marked = False
        for (writes, _, _), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, list):
                for place, write in enumerate(writes):
                    if write.key in self._cache:
                        self._cache.commit(write, outcome[place], now)
        writer = self.connections.writer
        if writer is not None and writer.broken:
            self._cache.clear()
        self._wake_watchers()

    def _on_touch(self, key: str) -> None:
        self.is_marked = False
        self._cache.drop(key)

    def on_disconnect(self) -> None:
        self._cache.clear()
        self._wake_watchers()  # they find out whether the store was closed for good

    def _wake_watchers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _changes(
    connection: apsw.Connection,
    after: int,
    *,
    since: int | None,
    prefix: str,
    limit: int,
    now: int,
) -> Changes:
    head = tables.head(connection)
    if after and not (head.forgotten <= max(after, since or 0) and after <= head.revision):
        raise WatchExpired(
            f"The store does not remember what changed after revision {after}. It remembers "
            f"revisions {head.forgotten} to {head.revision}.",
            remedy="list the records, and watch from now on",
        )
    return tables.changes(connection, after, prefix, limit, now)
