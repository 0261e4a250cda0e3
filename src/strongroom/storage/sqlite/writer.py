"""The one writer of a store. All waiting writes go into one transaction with one fsync."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import apsw

from strongroom.disk import database
from strongroom.disk.commits import Guard
from strongroom.disk.directory import unwritable
from strongroom.errors import RevisionConflict, StorageError, StoreUnavailable
from strongroom.storage.records import Clock, Write
from strongroom.storage.sqlite import tables
from strongroom.threads import check_loop, finish

MAX_BATCH = 4096
CHECKPOINT_PAGES = 4000  # 16 MiB of log
SWEEP_RECORDS = 1000
ACKNOWLEDGED_AT_ONCE = 32  # callers that get their result in one turn of the event loop
HANDED_OVER_AT_ONCE = 256  # writes; fewer leave the thread idle while callers get results

log = logging.getLogger(__name__)

Task = Callable[[apsw.Connection], Any]


Waiting = tuple[Sequence[Write], Mapping[str, int] | None, asyncio.Future[list[int]]]
"""The writes and checks of an `apply`, and the future of its revisions. A tuple is fastest."""

Outcome = list[int] | Exception
"""The result of an `apply`: the revisions of its writes, or why none was stored."""


class CommitListener(Protocol):
    """Hears of commits, on the event loop."""

    def on_commit(self, batch: list[Waiting], outcomes: list[Outcome], now: int) -> None:
        """A batch was committed, or failed. Called before the callers get their outcomes."""


class Hold:
    """Where a transaction waits, with all written, until it may be committed.

    Meanwhile its store takes no other write.
    """

    def __init__(self) -> None:
        """Call from the event loop."""
        self._loop = asyncio.get_running_loop()
        self.base: asyncio.Future[int] = self._loop.create_future()
        """The revision of the store before the transaction, once that is ready."""
        self._decided = threading.Event()
        self._commits = False

    def decide(self, *, commits: bool) -> None:
        """Let the transaction be committed, or be rolled back."""
        self._commits = commits
        self._decided.set()

    def wait(self, base: int) -> bool:
        """On the writer's thread: wait for the decision. Returns whether to commit."""
        self._loop.call_soon_threadsafe(_fulfil, self.base, base)
        self._decided.wait()
        return self._commits


class Writer:
    """A thread that owns the writing connection of one store.

    It stores all waiting writes in one transaction, and reports to the event loop once for the
    batch. A condition that does not hold fails only its own `apply`; an error of the disk fails the
    whole batch, and sets `broken` if the connection must not be used again.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        path: Path,
        *,
        guard: Guard,
        revision: int,
        clock: Clock,
        listener: CommitListener,
    ) -> None:
        self.revision = revision
        self.broken = False
        self._connection = connection
        self._path = path
        self._clock = clock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._guard = guard
        self._last_revision = revision
        self._log_pages = 0
        self._submitted: list[Waiting] = []
        self._acknowledging = 0
        self._batch: list[Waiting] = []
        self._queue: queue.SimpleQueue[list[Waiting] | Callable[[], None]] = queue.SimpleQueue()
        connection.wal_autocheckpoint(0)  # it would delay the acknowledgement
        connection.set_wal_hook(self._note_log_pages)
        # A daemon, so that a program can end without closing its provider, as if it was killed.
        self._thread = threading.Thread(
            target=self._work, name=f"writer of {path.name}", daemon=True
        )
        self._thread.start()

    # --- on the event loop --------------------------------------------------------------------

    def submit(
        self, writes: Sequence[Write], checks: Mapping[str, int] | None
    ) -> asyncio.Future[list[int]]:
        """Queue an `apply`; the future has its revisions once they are durable.

        Writes that are submitted in one turn of the event loop go to the thread together. So do the
        next writes of the callers of one commit, as many small commits would cost more.
        """
        check_loop(self._loop)
        future: asyncio.Future[list[int]] = self._loop.create_future()
        self._submitted.append((writes, checks, future))
        if len(self._submitted) == HANDED_OVER_AT_ONCE:
            self._hand_over()
        elif len(self._submitted) == 1 and not self._acknowledging:
            self._loop.call_soon(self._hand_over)
        return future

    def submit_held(
        self, writes: Sequence[Write], checks: Mapping[str, int] | None, hold: Hold
    ) -> asyncio.Future[list[int]]:
        """Queue an `apply` that has a transaction of its own, which ends as `hold` decides.

        If it is rolled back, the future has a StoreUnavailable.
        """
        future: asyncio.Future[list[int]] = self._loop.create_future()
        self._hand_over()
        self._queue.put(lambda: self._store_held((writes, checks, future), hold))
        return future

    def _hand_over(self) -> None:
        if self._submitted:
            self._queue.put(self._submitted)
            self._submitted = []

    def _on_commit(self, batch: list[Waiting], outcomes: list[Outcome], now: int) -> None:
        self._listener.on_commit(batch, outcomes, now)
        self._acknowledging += 1
        self._acknowledge(batch, outcomes)

    def _acknowledge(self, batch: list[Waiting], outcomes: list[Outcome], first: int = 0) -> None:
        """Give results to callers, some in each turn of the event loop: others must run too."""
        end = first + ACKNOWLEDGED_AT_ONCE
        for (_, _, future), outcome in zip(batch[first:end], outcomes[first:end], strict=True):
            if future.done():
                continue  # cancelled
            if isinstance(outcome, list):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        if end < len(batch):
            self._loop.call_soon(self._acknowledge, batch, outcomes, end)
        else:
            self._loop.call_soon(self._acknowledged)

    def _acknowledged(self) -> None:
        self._acknowledging -= 1
        self._hand_over()

    async def run(self, task: Task) -> Any:
        """Run `task` on the writing connection, in its turn and outside any transaction."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._hand_over()
        self._queue.put(lambda: self._perform(task, future))
        return await finish(future)

    async def compact(self) -> None:
        """Rewrite the file without its free pages, and move that out of the log."""
        await self.run(tables.compact)
        await self.run(lambda _: self._checkpoint())

    def sweep(self, now: int) -> asyncio.Future[list[int]]:
        """Turn some records that have expired by `now` into deletions, as one more batch."""
        future: asyncio.Future[list[int]] = self._loop.create_future()
        self._hand_over()
        self._queue.put(lambda: self._sweep(now, future))
        return future

    async def close(self) -> None:
        """Store what is waiting, checkpoint, and close the connection."""
        stopped: asyncio.Future[None] = self._loop.create_future()
        self._hand_over()
        self._queue.put(lambda: self._stop(stopped))
        try:
            await finish(stopped)
        finally:
            self._thread.join()

    def in_place(self) -> bool:
        """Whether the files are as this node left them, and nobody else has written them."""
        return self._guard.is_untouched()

    # --- on the thread ------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(SystemExit):
            while True:
                self._accept(self._queue.get())
                with contextlib.suppress(queue.Empty):
                    while len(self._batch) < MAX_BATCH:
                        self._accept(self._queue.get_nowait())
                self._commit()
                if self._log_pages >= CHECKPOINT_PAGES:
                    self._checkpoint()

    def _accept(self, item: list[Waiting] | Callable[[], None]) -> None:
        if isinstance(item, list):
            self._batch += item
        else:
            self._commit()
            item()

    def _commit(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._store(batch, self._clock())

    def _sweep(self, now: int, future: asyncio.Future[list[int]]) -> None:
        try:
            keys = tables.expired(self._connection, now, SWEEP_RECORDS)
        except apsw.Error as error:
            self._give_up(error)  # and `_store` refuses
            keys = []
        self._store([([Write(key, None) for key in keys], None, future)], now)

    def _store(self, batch: list[Waiting], now: int) -> None:
        outcomes: list[Outcome]
        try:
            outcomes = self._write(batch, now)
        except Exception as error:  # noqa: BLE001  # each caller must get the error, whatever it is
            outcomes = [self._give_up(error)] * len(batch)
        self._report(self._on_commit, batch, outcomes, now)

    def _store_held(self, waiting: Waiting, hold: Hold) -> None:
        now = self._clock()
        try:
            outcome = self._write_held(waiting, hold, now)
        except Exception as error:  # noqa: BLE001  # the caller must get it, whatever it is
            outcome = self._give_up(error)
        self._report(self._on_commit, [waiting], [outcome], now)

    def _write_held(self, waiting: Waiting, hold: Hold, now: int) -> Outcome:
        self._refuse_unless_sound()
        self._last_revision = self.revision
        self._connection.execute("BEGIN IMMEDIATE")
        outcome = self._write_checked(waiting, now)
        if isinstance(outcome, Exception) or not hold.wait(self.revision):
            self._connection.execute("ROLLBACK")
            return outcome if isinstance(outcome, Exception) else _not_stored(self._path)
        self._connection.execute("COMMIT")
        self.revision = self._last_revision
        self._note_commit()
        return outcome

    def _refuse_if_broken(self) -> None:
        if self.broken:
            raise StoreUnavailable(
                f"An earlier write to {self._path} failed. Nothing of this one was stored.",
                remedy="write it again when the cause is gone",
                path=self._path,
            )

    def _refuse_unless_sound(self) -> None:
        self._refuse_if_broken()
        if not self.in_place():
            raise StoreUnavailable(
                f"{self._path}, its log or its shared memory is no longer as this node left it: "
                "it was removed, replaced or changed. Nothing was stored.",
                remedy="put it back, or restart the node",
                path=self._path,
            )

    def _write(self, batch: list[Waiting], now: int) -> list[Outcome]:
        """Store a batch in its order, in one transaction. Returns the outcome of each `apply`."""
        self._refuse_unless_sound()
        self._last_revision = self.revision
        runs = [(sets, [*run]) for sets, run in itertools.groupby(batch, _only_sets)]
        in_pieces = len(runs) > 1 or not runs[0][0]  # a single statement needs no transaction
        if in_pieces:
            self._connection.execute("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []
        for sets, run in runs:
            if sets:
                outcomes += self._write_sets(run, now)
            else:
                outcomes += [self._write_checked(waiting, now) for waiting in run]
        if in_pieces:
            self._connection.execute("COMMIT")
        self.revision = self._last_revision
        self._note_commit()
        return outcomes

    def _note_commit(self) -> None:
        try:
            self._guard.on_commit(self.revision)
        except OSError as error:
            self.broken = True  # what is stored is not what the callers learn
            raise unwritable(self._path, error) from error

    def _write_sets(self, run: list[Waiting], now: int) -> list[list[int]]:
        """Store values without conditions, all in one statement."""
        writes: list[Write] = []
        revisions: list[list[int]] = []
        revision = self._last_revision
        for some, _, _ in run:
            own = []
            for write in some:
                revision += 1
                own.append(revision)
                writes.append(write)
            revisions.append(own)
        tables.put(self._connection, writes, self._last_revision, now)
        self._last_revision = revision
        return revisions

    def _write_checked(self, waiting: Waiting, now: int) -> Outcome:
        """Do one `apply`, if its conditions hold."""
        writes, checks, _ = waiting
        expected = [*checks.items()] if checks else []
        expected += [(w.key, w.expect) for w in writes if w.expect is not None]
        for key, wanted in expected:
            found = tables.found_at(self._connection, key, now)
            if found != wanted:
                return RevisionConflict(key, expected=wanted, found=found)
        return [self._write_one(write, now) for write in writes]

    def _write_one(self, write: Write, now: int) -> int:
        revision = self._last_revision + 1
        if write.value is not None:
            tables.put(self._connection, [write], self._last_revision, now)
            self._last_revision = revision
            return revision
        existed = tables.found_at(self._connection, write.key, now)
        # An expired record goes too: it would be back if the clock was set back.
        if tables.delete(self._connection, write.key, revision, now):
            self._last_revision = revision
        return revision if existed else 0

    def _perform(self, task: Task, future: asyncio.Future[Any]) -> None:
        try:
            self._refuse_unless_sound()
            result = task(self._connection)
            self._note_commit()
        except Exception as error:  # noqa: BLE001  # the caller of `run` gets it
            self._report(_fail, future, self._give_up(error))
        else:
            self._report(_fulfil, future, result)

    def _give_up(self, error: Exception) -> Exception:
        """Roll back an open transaction. Returns the error for the callers."""
        if isinstance(error, apsw.Error):
            # A full disk leaves the connection sound. After a failed write or fsync it is unknown
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

    def _checkpoint(self) -> bool:
        """Move what is in the log to the database. Returns whether all was moved."""
        try:
            frames, moved = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if is_complete := frames == moved:
                self._guard.on_checkpoint(self.revision)
        except (apsw.Error, OSError, StorageError) as error:  # the log keeps what was not moved
            log.warning("%s: no checkpoint: %s", self._path, error)
            return False
        finally:
            self._guard.look()
            self._log_pages = 0
        return is_complete

    def _stop(self, stopped: asyncio.Future[None]) -> None:
        self._connection.set_wal_hook(None)
        removes_log = not self.broken and self.in_place() and self._checkpoint()
        # Otherwise the log stays, with what it proves.
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, not removes_log)
        with contextlib.suppress(apsw.Error, OSError):
            self._connection.close()
            if removes_log:
                self._guard.on_removal()
        self._guard.close()
        self._report(_fulfil, stopped, None)
        raise SystemExit

    def _note_log_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _report(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(callback, *args)


def _only_sets(waiting: Waiting) -> bool:
    """Whether it only stores values, without conditions."""
    writes, checks, _ = waiting
    if checks:
        return False
    for write in writes:  # noqa: SIM110  # `all` takes three times as long, for each set
        if write.value is None or write.expect is not None:
            return False
    return True


def _not_stored(path: Path) -> StoreUnavailable:
    what = f"Nothing was stored in {path}, as another store failed that belongs to it."
    return StoreUnavailable(what, remedy="write it again when the cause is gone", path=path)


def _fulfil(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
