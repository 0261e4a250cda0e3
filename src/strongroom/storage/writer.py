"""The one writer of a store: all that waits goes into one transaction and one fsync."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

from strongroom.disk import database
from strongroom.errors import RevisionConflict, StorageError, StoreUnavailable
from strongroom.storage import tables
from strongroom.storage.records import Clock, Write

MAX_BATCH = 4096
CHECKPOINT_PAGES = 1000
SWEEP_RECORDS = 1000

log = logging.getLogger(__name__)

Task = Callable[[apsw.Connection], Any]


class Waiting:
    """An `apply` that waits for its commit, and then its outcome."""

    __slots__ = ("checks", "error", "future", "revisions", "writes")

    def __init__(
        self, writes: Sequence[Write], checks: Mapping[str, int], future: asyncio.Future[list[int]]
    ) -> None:
        self.writes = writes
        self.checks = checks
        self.future = future
        self.revisions: list[int] = []
        self.error: Exception | None = None


class Writer:
    """A thread that owns the writing connection of one store.

    It takes all that waits, stores it in one transaction, and reports to the event loop once for
    the batch. A condition that does not hold fails its own `apply` alone, an error of the disk the
    whole batch; `broken` then says that the connection must not be used again.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        path: Path,
        *,
        revision: int,
        clock: Clock,
        settle: Callable[[list[Waiting], int], None],
    ) -> None:
        self.revision = revision
        self.broken = False
        self._connection = connection
        self._path = path
        self._clock = clock
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self._identity = _identity(path)
        self._log_pages = 0
        self._batch: list[Waiting] = []
        self._queue: queue.SimpleQueue[Waiting | Callable[[], None]] = queue.SimpleQueue()
        connection.wal_autocheckpoint(0)  # it would delay the acknowledgement
        connection.set_wal_hook(self._note_log_pages)
        # A daemon: a program that ends without closing its provider ends as a kill would end it.
        self._thread = threading.Thread(
            target=self._work, name=f"writer of {path.name}", daemon=True
        )
        self._thread.start()

    # --- on the event loop --------------------------------------------------------------------

    def submit(self, waiting: Waiting) -> None:
        """Queue an `apply`; it is settled on the event loop after the commit."""
        self._queue.put(waiting)

    async def run(self, task: Task) -> Any:
        """Run `task` on the writing connection, in its turn and outside any transaction."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(lambda: self._perform(task, future))
        return await future

    async def sweep(self) -> int | None:
        """Turn records that have expired into deletions; returns when the next one expires."""
        due: int | None = await self.run(self._sweep)
        return due

    async def close(self) -> None:
        """Store what waits, checkpoint, and close the connection."""
        stopped: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(lambda: self._stop(stopped))
        await stopped
        self._thread.join()

    def in_place(self) -> bool:
        """Whether the open file is still the one at its path."""
        return _identity(self._path) == self._identity

    # --- on the thread ------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(SystemExit):
            while True:
                self._take(self._queue.get())
                with contextlib.suppress(queue.Empty):
                    while len(self._batch) < MAX_BATCH:
                        self._take(self._queue.get_nowait())
                self._commit()
                if self._log_pages >= CHECKPOINT_PAGES:
                    self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _take(self, item: Waiting | Callable[[], None]) -> None:
        if isinstance(item, Waiting):
            self._batch.append(item)
        else:
            self._commit()
            item()

    def _commit(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        now = self._clock()
        try:
            self._begin()
            revision = self._write(batch, now)
            self._connection.execute("COMMIT")
            self.revision = revision
        except Exception as error:  # noqa: BLE001  # whatever it was, each caller must hear of it
            failure = self._give_up(error)
            for waiting in batch:
                waiting.error = failure
        self._report(self._settle, batch, now)

    def _refuse_if_broken(self) -> None:
        if self.broken:
            raise StoreUnavailable(
                f"{self._path} could not be written just before. Nothing of this was stored. Try: "
                "again, when the cause is gone.",
                path=self._path,
            )

    def _begin(self) -> None:
        self._refuse_if_broken()
        if not self.in_place():
            raise StoreUnavailable(
                f"{self._path} is not the file any more that this node has opened: it was removed "
                "or replaced. Nothing was stored. Try: put it back, or restart the node.",
                path=self._path,
            )
        self._connection.execute("BEGIN IMMEDIATE")

    def _write(self, batch: list[Waiting], now: int) -> int:
        """Write a batch in its order; returns the newest revision."""
        revision = self.revision
        rows: list[object] = []
        for waiting in batch:
            if waiting.checks or not _all_sets(waiting.writes):
                tables.put(self._connection, rows)
                rows.clear()
                revision = self._write_checked(waiting, revision, now)
                continue
            for write in waiting.writes:
                revision += 1
                rows += (revision, write.key, now, now, write.expires, write.value)
                waiting.revisions.append(revision)
        tables.put(self._connection, rows)
        return revision

    def _write_checked(self, waiting: Waiting, revision: int, now: int) -> int:
        expected = [*waiting.checks.items()]
        expected += [(w.key, w.expect) for w in waiting.writes if w.expect is not None]
        for key, wanted in expected:
            found = tables.found_at(self._connection, key, now)
            if found != wanted:
                waiting.error = RevisionConflict(key, expected=wanted, found=found)
                return revision
        for write in waiting.writes:
            if write.value is not None:
                revision += 1
                row = [revision, write.key, now, now, write.expires, write.value]
                tables.put(self._connection, row)
                waiting.revisions.append(revision)
            elif tables.found_at(self._connection, write.key, now):
                revision += 1
                tables.delete(self._connection, write.key, revision, now)
                waiting.revisions.append(revision)
            else:
                waiting.revisions.append(0)
        return revision

    def _sweep(self, connection: apsw.Connection) -> int | None:
        now = self._clock()
        self._begin()
        revision = self.revision
        for key in tables.expired(connection, now, SWEEP_RECORDS):
            revision += 1
            tables.delete(connection, key, revision, now)
        connection.execute("COMMIT")
        self.revision = revision
        return tables.next_expiry(connection)

    def _perform(self, task: Task, future: asyncio.Future[Any]) -> None:
        try:
            self._refuse_if_broken()
            result = task(self._connection)
        except Exception as error:  # noqa: BLE001  # it belongs to whoever waits for the task
            self._report(_fail, future, self._give_up(error))
        else:
            self._report(_fulfil, future, result)

    def _give_up(self, error: Exception) -> Exception:
        """Roll back what is open; returns the error that the callers get."""
        if isinstance(error, apsw.Error):
            # A full disk leaves the connection sound; after a failed write or fsync it is not known
            # what reached the disk, so nothing may be acknowledged from this connection again.
            unsound = not isinstance(error, apsw.FullError | apsw.BusyError)
            failure: Exception = database.explain(error, self._path)
            failure.__cause__ = error
        else:
            failure = error
            unsound = not isinstance(error, StorageError)
        self.broken = self.broken or unsound
        with contextlib.suppress(apsw.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        return failure

    def _checkpoint(self, mode: int) -> None:
        try:
            self._connection.wal_checkpoint(mode=mode)
        except apsw.Error as error:  # the log keeps what could not be moved
            log.warning("%s: no checkpoint: %s", self._path, error)
        self._log_pages = 0

    def _stop(self, stopped: asyncio.Future[None]) -> None:
        if not self.broken and self.in_place():
            self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._connection.set_wal_hook(None)
        with contextlib.suppress(apsw.Error):
            self._connection.close()
        self._report(_fulfil, stopped, None)
        raise SystemExit

    def _note_log_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _report(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)


def _all_sets(writes: Sequence[Write]) -> bool:
    """Whether all store a value, whatever was there."""
    for write in writes:  # noqa: SIM110  # an `all` takes three times as long, for each set
        if write.value is None or write.expect is not None:
            return False
    return True


def _fulfil(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # before each commit, and Path takes longer
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_nlink
