"""The connections to one SQLite file: opened at the first use, closed when it has been idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

import apsw

from strongroom.disk import database
from strongroom.disk.commits import Guard
from strongroom.disk.remedies import put_back
from strongroom.errors import StoreClosed, StoreDamaged, StoreForked, StoreUnavailable
from strongroom.keys.derive import FileKey
from strongroom.storage.sqlite.files import StoreFiles
from strongroom.storage.sqlite.opening import Opened, open_store
from strongroom.storage.sqlite.rotation import RekeyedCopy
from strongroom.storage.sqlite.writer import CommitListener, Task, Writer
from strongroom.threads import Threads, finish

SCANNERS = 4
BUSY_MS = 10_000

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ConnectionsListener(CommitListener, Protocol):
    """Hears what happens to the connections, on the event loop."""

    def on_open(self, *, is_marked: bool) -> None:
        """The file was opened. Says whether all in it is marked."""

    def on_disconnect(self) -> None:
        """The file was closed, and may be another one when it is opened again."""


def _close(made: tuple[Opened, apsw.Connection, Guard]) -> None:
    opened, reader, guard = made
    reader.close()
    opened.connection.close()
    guard.close()


class Connections:
    """One connection for the writer, one for the event loop, up to four for reads on threads.

    `reader` is for single records, read on the event loop itself. Both it and `writer` are None
    while the file is closed.
    """

    def __init__(
        self, files: StoreFiles, namespace: str, threads: Threads, listener: ConnectionsListener
    ) -> None:
        """Open nothing yet.

        Args:
            files: Checks the file, and has its key.
            namespace: Which file, which exists.
            threads: Where the file is opened and scans run.
            listener: Hears of openings, commits and closings.
        """
        self.path = files.path(namespace)
        self.namespace = namespace
        self.writer: Writer | None = None
        self.reader: apsw.Connection | None = None
        self.is_closed = False
        self.was_used = False
        """Whether there was a call since the provider last set this to False."""
        self.calls = 0
        """How many calls are under way."""
        self._files = files
        self._threads = threads
        self._listener = listener
        self._key: FileKey | None = None
        self._scanners: list[apsw.Connection] = []
        self._scanner_slots = asyncio.Semaphore(SCANNERS)
        self._ending_scans = asyncio.Lock()
        self._opening = asyncio.Lock()
        self.damage: str | None = None
        """What a check has found since the start."""
        self._inherited: tuple[object, ...] | None = None
        _all.add(self)

    # --- opening ------------------------------------------------------------------------------

    async def open(self) -> Writer:
        """Open the file unless it is open, and return its writer.

        Raises:
            StoreClosed: `close` was called.
            StoreForked: The file was opened before this process was forked.
            StoreDamaged: A check has found damage since the start.
            StoreError: The file is not as it should be.
        """
        if self._inherited is not None:
            raise StoreForked(
                f"{self.path} was opened before this process was forked.",
                remedy="open a provider in the child",
                path=self.path,
                namespace=self.namespace,
            )
        while self.is_closed or self.writer is None or self.writer.broken:
            if self.writer is not None:
                await self._close_broken()
            async with self._files.open_files.room(), self._opening:
                if self.is_closed:
                    self.refuse_closed()
                self._refuse_if_damaged()
                if self.writer is None:
                    await finish(self._connect())
        return self.writer

    async def _close_broken(self) -> None:
        """Close all connections: nothing may be open when a file's header is read."""
        async with self._without_scans(), self._opening:
            if self.writer is not None and self.writer.broken:
                await finish(self._disconnect())

    def _refuse_if_damaged(self) -> None:
        if self.damage is not None:
            raise StoreDamaged(
                f"{self.path} is damaged: {self.damage}. The node does not use it any longer.",
                remedy=f"stop the node; then {put_back(self.path)}",
                path=self.path,
                namespace=self.namespace,
            )

    async def condemn(self, damage: str) -> None:
        """Close the file as it is, and refuse every use of it until the node starts again."""
        log.error("%s is damaged, and is not used any longer: %s", self.path, damage)
        self.damage = damage
        if self.writer is not None:
            self.writer.broken = True
            await self._close_broken()

    async def _connect(self) -> None:
        made = await self._threads.open(self._open_file, _close)
        opened, self.reader, guard = made
        self._key = opened.key
        self.writer = Writer(
            opened.connection,
            self.path,
            guard=guard,
            revision=opened.head.revision,
            clock=self._files.clock,
            listener=self._listener,
        )
        self._files.open_files.opened(self)
        self._listener.on_open(is_marked=opened.is_marked)

    def _open_file(self) -> tuple[Opened, apsw.Connection, Guard]:
        opened = open_store(self._files, self.namespace, self.path)
        try:
            reader = database.open_existing(self.path, opened.key, check_log=False)
            reader.set_busy_timeout(0)
            head = opened.head
            guard = Guard(self.path, head.file_id, self._files.commits, head.revision)
        except BaseException:
            opened.connection.close()
            raise
        return opened, reader, guard

    # --- closing ------------------------------------------------------------------------------

    async def close(self) -> None:
        """Checkpoint and close the file for good."""
        self.is_closed = True
        async with self._without_scans(), self._opening:
            await finish(self._disconnect())

    async def close_if_idle(self) -> None:
        """Checkpoint and close the file unless it is in use; the next use opens it again."""
        if self._is_in_use():
            return
        async with self._without_scans(), self._opening:
            writer = self.writer
            if not self._is_in_use() and writer and (writer.broken or writer.in_place()):
                await finish(self._disconnect())

    def is_awaited(self) -> bool:
        """Whether the file is to be closed when its reads have ended. From any thread."""
        return self.is_closed or self._ending_scans.locked()

    def _is_in_use(self) -> bool:
        return self.was_used or self.calls > 0

    async def replace_file(self, copy: RekeyedCopy) -> None:
        """Let `copy` take the place of this file. Every other call waits meanwhile.

        Raises:
            StoreUnavailable: The file is closed, so that the copy may lack what was written last.
        """
        async with self._without_scans(), self._opening:
            if self.writer is None or self.writer.broken:
                raise StoreUnavailable(
                    f"{self.path} was closed during the rotation, and stays as it is.",
                    remedy="rotate again",
                    path=self.path,
                    namespace=self.namespace,
                )
            await finish(self._swap(copy))

    async def _swap(self, copy: RekeyedCopy) -> None:
        await self._disconnect(copy.complete)
        await self._threads.run(copy.take_place)

    @contextlib.asynccontextmanager
    async def _without_scans(self) -> AsyncIterator[None]:
        """Wait until no scan is running. Lock order: take this before `_opening`."""
        async with self._ending_scans, contextlib.AsyncExitStack() as slots:
            for _ in range(SCANNERS):
                await slots.enter_async_context(self._scanner_slots)
            yield

    async def _disconnect(self, last: Task | None = None) -> None:
        """Close everything. `last` runs on the writing connection before."""
        writer, self.writer = self.writer, None
        reader, self.reader = self.reader, None
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
        self._files.open_files.closed(self)
        self._listener.on_disconnect()

    def refuse_closed(self) -> NoReturn:
        """Raise StoreClosed."""
        raise StoreClosed(f"{self.path} was closed.", path=self.path, namespace=self.namespace)

    def abandon_in_child(self) -> None:
        """After a fork: never use the parent's connections, and never close them either."""
        self._inherited = (self.writer, self.reader, *self._scanners)
        self.writer = self.reader = None

    # --- work on the connections --------------------------------------------------------------

    async def run_on_writer(self, task: Callable[[apsw.Connection], T]) -> T:
        """Run `task` on the writing connection between two commits."""
        writer = await self.open()
        self.calls += 1
        try:
            result: T = await writer.run(task)
        finally:
            self.calls -= 1
        return result

    async def run_read(
        self,
        function: Callable[Concatenate[apsw.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a read on a thread, with a connection that nobody else uses meanwhile."""
        self.was_used = True
        self.calls += 1
        try:
            while True:
                if self.writer is None:
                    await self.open()
                async with self._scanner_slots:
                    if self.is_closed:
                        self.refuse_closed()
                    if self.writer is not None:  # the file was not replaced meanwhile
                        connection = self._scanners.pop() if self._scanners else None
                        return await self._threads.run(
                            self._read, connection, lambda at: function(at, *args, **kwargs)
                        )
        finally:
            self.calls -= 1

    def _read(
        self, connection: apsw.Connection | None, function: Callable[[apsw.Connection], T]
    ) -> T:
        connection = connection or self._connect_scanner()
        try:
            return function(connection)
        except apsw.Error as error:
            raise database.explain(error, self.path, self.namespace) from error
        finally:
            self._scanners.append(connection)

    async def run_on_fresh_connection(self, function: Callable[[apsw.Connection], T]) -> T:
        """Run a long read on a thread, with a connection that has cached nothing.

        If it meets damage, the file is not used any longer.
        """
        try:
            async with self.fresh_connection() as connection:
                return await self._threads.run(function, connection)
        except StoreDamaged as error:
            if self.damage is None:
                await self.condemn(error.what)
            raise

    @contextlib.asynccontextmanager
    async def fresh_connection(self) -> AsyncIterator[apsw.Connection]:
        """A new connection for the block; it takes the place of one of the four for reads."""
        self.calls += 1
        try:
            while True:
                await self.open()
                async with self._scanner_slots:
                    if self.writer is not None:
                        connection = await self._threads.open(
                            self._connect_scanner, apsw.Connection.close
                        )
                        try:
                            yield connection
                        finally:
                            connection.close()
                        return
        except apsw.Error as error:
            raise database.explain(error, self.path, self.namespace) from error
        finally:
            self.calls -= 1

    def _connect_scanner(self) -> apsw.Connection:
        connection = database.open_existing(self.path, self._key, check_log=False)
        connection.set_busy_timeout(BUSY_MS)
        return connection


_all: weakref.WeakSet[Connections] = weakref.WeakSet()


def _abandon_all_in_child() -> None:
    for connections in list(_all):
        connections.abandon_in_child()


os.register_at_fork(after_in_child=_abandon_all_in_child)
