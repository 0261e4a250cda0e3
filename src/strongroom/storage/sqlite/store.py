"""One namespace in one SQLite file: group commit for writes, point reads in line, scans beside."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import apsw

from strongroom.disk import database
from strongroom.disk.header import FileKey
from strongroom.errors import (
    FormatUnsupported,
    StoreClosed,
    StoreForked,
    StoreUnavailable,
    WatchExpired,
)
from strongroom.storage.cache import RecordCache
from strongroom.storage.records import (
    PAGE_BYTES,
    PAGE_RECORDS,
    Changes,
    Clock,
    Feature,
    Page,
    Record,
    RecordStore,
    Write,
)
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.writer import Outcome, Waiting, Writer

CACHE_BYTES = 16 * 1024 * 1024
SCANNERS = 4
BUSY_MS = 10_000

P = ParamSpec("P")
T = TypeVar("T")

_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  # a process has one such count
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class SqliteStore(RecordStore):
    """The records of one namespace.

    Its connections are opened at the first use and closed when it has been idle: one for the
    writer, one for point reads on the event loop, up to four for what is long and goes to a thread.
    """

    features = frozenset(Feature)

    def __init__(
        self,
        path: Path,
        namespace: str,
        *,
        unlock: Callable[[], FileKey | None],
        verify: Callable[[tables.Head], bool],
        clock: Clock,
        threads: Executor,
    ) -> None:
        """Nothing is opened yet.

        Args:
            path: The file, which exists.
            namespace: Its name, for errors.
            unlock: Checks the file's header and returns its key; called off the event loop.
            verify: Raises if the head is not that of the newest copy of this file; returns whether
                all that was written is marked.
            clock: The time.
            threads: Where scans run.
        """
        self.path = path
        self.namespace = namespace
        self._unlock = unlock
        self._verify = verify
        self._clock = clock
        self._threads = threads
        self._born = _forks
        self.closed = False
        self._opening = asyncio.Lock()
        self._writer: Writer | None = None
        self._reader: apsw.Connection | None = None
        self._scanners: list[apsw.Connection] = []
        self._scanner_slots = asyncio.Semaphore(SCANNERS)
        self._ending_scans = asyncio.Lock()
        self._key: FileKey | None = None
        self._cache = RecordCache(CACHE_BYTES)
        self._changed = asyncio.Event()
        self._due: int | None = None
        self._under_way = 0
        self.used = False
        self.marked = True

    # --- the contract -------------------------------------------------------------------------

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        if self._reader is None or self._born != _forks:
            await self.open()
        self.used = True
        found = []
        for key in keys:
            record = self._cache.get(key)
            if record is None or (record.expires is not None and record.expires <= self._clock()):
                record = self._read_inline(key)
                if record is _LONG:
                    record = await self._in_thread(tables.read_long, key, self._clock())
            else:
                self._cache.move_to_end(key)
            found.append(record)
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
        return await self._in_thread(
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
        return await self._in_thread(tables.count, prefix, self._clock())

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        writer = self._writer
        if writer is None or writer.broken or self._born != _forks:
            writer = await self.open()
        self.used = True
        self._under_way += 1
        return await writer.submit(writes, checks)

    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        writer = await self.open()
        if after is None:
            return Changes([], writer.revision)
        self._under_way += 1
        try:
            while True:
                changed = self._changed
                await self.sweep()
                found = await self._in_thread(
                    _changes, after, since=since, prefix=prefix, limit=limit, now=self._clock()
                )
                if found.changes:
                    return found
                after = found.cursor
                await self._wait(changed)
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        self.closed = True
        self._changed.set()
        async with self._scans_ended(), self._opening:
            await self._disconnect()

    # --- for the provider ---------------------------------------------------------------------

    async def sweep(self) -> None:
        """Turn records whose time has passed into deletions, if the store is open."""
        while (
            (writer := self._writer)
            and not writer.broken
            and self._due is not None
            and self._due <= self._clock()
        ):
            self._due = await writer.sweep()
            self.marked = False
            self._notify()

    async def mark(self, stamp: bytes, known: bytes) -> int:
        """Leave a stamp in the file beside the `known` one; returns the revision it stands for."""
        writer = await self.open()
        self.marked = True
        try:
            revision: int = await writer.run(
                lambda connection: tables.mark(connection, stamp, known, self._clock())
            )
        except BaseException:
            self.marked = False
            raise
        return revision

    @property
    def resting(self) -> bool:
        """Whether its file is closed."""
        return self._writer is None

    async def rest(self) -> None:
        """Checkpoint and close the file, unless it is in use; the next use opens it again."""
        if self._is_used():
            return
        async with self._scans_ended(), self._opening:
            writer = self._writer
            if not self._is_used() and writer and (writer.broken or writer.in_place()):
                await self._disconnect()

    def _is_used(self) -> bool:
        return self.used or self._under_way > 0

    async def on_writer(self, task: Callable[[apsw.Connection], T]) -> T:
        """Run `task` on the writing connection between two commits."""
        writer = await self.open()
        self._under_way += 1
        try:
            result: T = await writer.run(task)
        finally:
            self._under_way -= 1
        return result

    async def replace(
        self, last: Callable[[apsw.Connection], None], swap: Callable[[], None]
    ) -> None:
        """Let another file take the place of this one. Who wants the store meanwhile waits.

        Args:
            last: Runs on the writing connection, after all that was submitted.
            swap: Runs on a thread, when nothing is open any more.
        """
        async with self._scans_ended(), self._opening:
            if self._writer is None or self._writer.broken:
                raise StoreUnavailable(
                    f"{self.path} was closed meanwhile, and stays as it is. Try it again.",
                    path=self.path,
                    namespace=self.namespace,
                )
            await self._disconnect(last)
            await asyncio.get_running_loop().run_in_executor(self._threads, swap)

    async def snapshot(self, prefix: str = "") -> AsyncGenerator[Sequence[Record], None]:
        """All records whose keys begin with `prefix`, as of one moment, page by page.

        Meanwhile the log cannot be emptied, and a rotation waits: read on quickly, and to the end.
        """
        read = functools.partial(
            tables.scan,
            prefix=prefix,
            limit=PAGE_RECORDS,
            max_bytes=PAGE_BYTES,
            reverse=False,
            values=True,
            now=self._clock(),
        )
        async with self._new_connection() as connection:
            connection.execute("BEGIN")
            after = None
            while True:
                page = await self._uninterrupted(functools.partial(read, connection, after=after))
                if page.records:
                    yield page.records
                    after = page.records[-1].key
                if not page.more:
                    return
                if self.closed:
                    self._refuse_closed()

    async def examine(self, task: Callable[[apsw.Connection], T]) -> T:
        """Run a `task` that reads for long on a thread, on a connection that has cached nothing."""
        async with self._new_connection() as connection:
            return await self._uninterrupted(lambda: task(connection))

    @contextlib.asynccontextmanager
    async def _new_connection(self) -> AsyncIterator[apsw.Connection]:
        self._under_way += 1
        try:
            while True:
                await self.open()
                async with self._scanner_slots:
                    if self._writer is not None:
                        connection = await self._uninterrupted(self._connect_scanner)
                        try:
                            yield connection
                        finally:
                            connection.close()
                        return
        except apsw.Error as error:
            raise database.explain(error, self.path, self.namespace) from error
        finally:
            self._under_way -= 1

    # --- connections --------------------------------------------------------------------------

    async def open(self) -> Writer:
        """The writer, with all connections open."""
        if self._born != _forks:
            raise StoreForked(
                f"{self.path} was opened before this process was forked. Open a provider of the "
                "child's own.",
                path=self.path,
                namespace=self.namespace,
            )
        while self.closed or self._writer is None or self._writer.broken:
            if self._writer is not None:
                await self._close_broken()
            async with self._opening:
                if self.closed:
                    self._refuse_closed()
                if self._writer is None:
                    await self._start_writer()
        return self._writer

    async def _close_broken(self) -> None:
        """Close all, since nothing may be open when a file's header is read."""
        async with self._scans_ended(), self._opening:
            if self._writer is not None and self._writer.broken:
                await self._disconnect()

    async def _start_writer(self) -> None:
        loop = asyncio.get_running_loop()
        connections = await loop.run_in_executor(self._threads, self._connect)
        writing, self._reader, head, self._due = connections
        self._writer = Writer(
            writing,
            self.path,
            revision=head.revision,
            clock=self._clock,
            settle=self._settle,
        )

    def _connect(self) -> tuple[apsw.Connection, apsw.Connection, tables.Head, int | None]:
        self._key = self._unlock()
        writing = database.open_existing(self.path, self._key)
        try:
            if (found := tables.version(writing)) != tables.VERSION:
                raise FormatUnsupported(
                    (
                        f"{self.path} has tables of version {found}, and this Strongroom knows "
                        f"version {tables.VERSION}."
                    ),
                    remedy="a newer Strongroom",
                    path=self.path,
                    namespace=self.namespace,
                )
            head = tables.head(writing)
            self.marked = self._verify(head)
            reader = database.open_existing(self.path, self._key, check_log=False)
            reader.set_busy_timeout(0)
            return writing, reader, head, tables.next_expiry(reader)
        except apsw.Error as error:
            writing.close()
            raise database.explain(error, self.path, self.namespace) from error
        except BaseException:
            writing.close()
            raise

    @contextlib.asynccontextmanager
    async def _scans_ended(self) -> AsyncIterator[None]:
        """No scan is at work within the block. It comes before `_opening`, never inside it."""
        async with self._ending_scans, contextlib.AsyncExitStack() as slots:
            for _ in range(SCANNERS):
                await slots.enter_async_context(self._scanner_slots)
            yield

    async def _disconnect(self, last: Callable[[apsw.Connection], None] | None = None) -> None:
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        for connection in (reader, *self._scanners):
            if connection is not None:
                connection.close()
        self._scanners.clear()
        if writer is not None:
            try:
                if last is not None:
                    await writer.run(last)
            finally:
                await writer.close()
        self._cache.clear()

    def _refuse_closed(self) -> NoReturn:
        raise StoreClosed(f"{self.path} was closed.", path=self.path, namespace=self.namespace)

    # --- reading ------------------------------------------------------------------------------

    def _read_inline(self, key: str) -> Record | None:
        """One record from the event loop's own connection; `_LONG` where a thread must read it."""
        if self._reader is None:  # closed while an earlier key was read
            return _LONG
        try:
            found = tables.read(self._reader, key, self._clock())
        except apsw.BusyError:
            return _LONG
        except apsw.Error as error:
            raise database.explain(error, self.path, self.namespace) from error
        if isinstance(found, int):
            return _LONG
        if found is not None:
            self._cache.put(found)
        return found

    async def _in_thread(
        self,
        function: Callable[Concatenate[apsw.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a read on a thread, with a connection that nobody else uses meanwhile."""
        self.used = True
        self._under_way += 1
        try:
            while True:
                if self._writer is None or self._born != _forks:
                    await self.open()
                async with self._scanner_slots:
                    if self.closed:
                        self._refuse_closed()
                    if self._writer is not None:  # the file was not replaced meanwhile
                        return await self._scan(lambda at: function(at, *args, **kwargs))
        finally:
            self._under_way -= 1

    async def _scan(self, function: Callable[[apsw.Connection], T]) -> T:
        connection = self._scanners.pop() if self._scanners else None

        def call() -> T:
            nonlocal connection
            if connection is None:
                connection = self._connect_scanner()
            return function(connection)

        try:
            return await self._uninterrupted(call)
        except apsw.Error as error:
            raise database.explain(error, self.path, self.namespace) from error
        finally:
            if connection is not None:
                self._scanners.append(connection)

    def _connect_scanner(self) -> apsw.Connection:
        connection = database.open_existing(self.path, self._key, check_log=False)
        connection.set_busy_timeout(BUSY_MS)
        return connection

    async def _uninterrupted(self, call: Callable[[], T]) -> T:
        """Wait for the thread even when cancelled: it is using the connection."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    # --- after a commit -----------------------------------------------------------------------

    def _settle(self, batch: list[Waiting], outcomes: list[Outcome], now: int) -> None:
        """Take note of a commit, before those who wait for it are told."""
        self._under_way -= len(batch)
        self.marked = False
        for (writes, _, _), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, list):
                for place, write in enumerate(writes):
                    if write.key in self._cache:
                        self._cache.commit(write, outcome[place], now)
                    if write.expires is not None:
                        self._due = min(write.expires, self._due or write.expires)
        if self._writer is not None and self._writer.broken:
            self._cache.clear()
        self._notify()

    async def _wait(self, changed: asyncio.Event) -> None:
        """Wait for a change, looking at the clock each second where records expire."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if self._due is None else 1.0):
                await changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


_LONG = Record("", b"", 0, 0, 0)  # stands for a record that only a thread may read


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
            (
                f"Revision {after} is not within what the store remembers ({head.forgotten} "
                f"to {head.revision})."
            ),
            remedy="list what is there, and watch from now on",
        )
    return tables.changes(connection, after, prefix, limit, now)
