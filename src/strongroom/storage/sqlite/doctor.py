"""Is my data safe? Checks everything in a data directory, and changes nothing.

On a running node it reads while the node works. If no node runs, it reads a private copy of each
file, since opening a database may already change the files beside it.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec

from strongroom.disk import database
from strongroom.disk.copying import is_read_only
from strongroom.disk.directory import NETWORK_FILESYSTEMS, filesystem, log_of
from strongroom.disk.remedies import set_aside
from strongroom.errors import RecordInvalid, StorageError, StoreUnavailable
from strongroom.keys.audit import AuditLine
from strongroom.keys.keystore import KeyState
from strongroom.storage.encoding import split
from strongroom.storage.provider import NODE_META
from strongroom.storage.records import OnProgress, Record
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.files import AUDIT, MARK, SEEN, StoreFiles
from strongroom.storage.sqlite.opening import open_store
from strongroom.storage.sqlite.provider import SqliteProvider
from strongroom.storage.typed import KeyValueStore

NAMED_RECORDS = 5
STEPS = 100_000  # of SQLite's virtual machine between two reports of progress
_OK, _NOTE, _PROBLEM = "ok", "note", "problem"


class Finding(msgspec.Struct, frozen=True):
    """The result of one check. `level` is ok, note or problem; a problem has a remedy."""

    level: str
    what: str
    namespace: str | None = None
    remedy: str | None = None


async def examine_running(provider: SqliteProvider, on_progress: OnProgress) -> list[Finding]:
    """Check the directory of a running node. It does not use a damaged store any longer."""
    findings = list(_surroundings(provider.files))
    progress = _Bytes(provider.files, on_progress)
    for namespace in await provider.namespaces():
        typed = provider.typed.get(namespace)
        reading = _Reading(provider.files, namespace, progress, typed, running=True)
        try:
            store = await provider.open(namespace)
            findings += await store.connections.run_on_fresh_connection(reading.findings)
            if reading.damage:
                await store.connections.condemn(reading.damage[0])
        except StorageError as error:
            findings.append(problem(error, namespace))
        progress.end(namespace)
    return findings


def examine_at_rest(files: StoreFiles, on_progress: OnProgress) -> list[Finding]:
    """Check a directory that no node uses. Blocks."""
    with files.inspecting():
        findings = [*_surroundings(files), *_strangers(files)]
        progress = _Bytes(files, on_progress)
        namespaces = sorted(files.keystore.entries, key=lambda name: (name != NODE_META, name))
        for namespace in namespaces:  # NODE_META first, as it has the watermarks of the others
            findings += _examine_copy(files, namespace, progress)
            progress.end(namespace)
        return findings


def problem(error: StorageError, namespace: str | None = None) -> Finding:
    """The finding for an error."""
    return Finding(_PROBLEM, error.what, namespace, error.remedy)


# --- the directory ----------------------------------------------------------------------------


def _surroundings(files: StoreFiles) -> Iterator[Finding]:
    directory, keystore = files.directory, files.keystore
    if keystore.encrypted:
        yield Finding(_OK, f"The keystore opens with the master key {keystore.fingerprint}.")
    else:
        yield Finding(
            _NOTE,
            "The profile sqlite encrypts nothing.",
            remedy="FAME_STORAGE_PROFILE=encrypted-sqlite, with another directory",
        )
    yield from _modes(directory)
    kind = filesystem(directory)
    if kind in NETWORK_FILESYSTEMS:
        yield Finding(
            _PROBLEM,
            f"{directory} is on a network filesystem ({kind}), where locks cannot be relied on.",
            remedy="a directory on a local disk",
        )
    else:
        yield Finding(
            _OK, f"The filesystem ({kind or 'local'}) is suitable for write-ahead logging."
        )
    yield _free_space(files)
    rotating = [name for name, e in keystore.entries.items() if e.state is KeyState.ROTATING]
    if rotating:
        yield Finding(
            _NOTE,
            f"A rotation of data keys was interrupted. It left: {', '.join(sorted(rotating))}.",
            remedy="strongroom key rotate --data",
        )
    if keystore.retired:
        yield Finding(
            _NOTE,
            f"{len(keystore.retired)} data keys are retired: no store is under them, but backups "
            "from before their rotation may be.",
        )


def _modes(directory: Path) -> Iterator[Finding]:
    owner = directory.stat().st_uid
    sound = True
    for path in (directory, *sorted(directory.iterdir())):
        info = path.lstat() if path != directory else path.stat()
        if info.st_mode & 0o077 and not stat.S_ISLNK(info.st_mode):
            sound = False
            yield Finding(
                _PROBLEM,
                f"Others than the owner can access {path} (mode {info.st_mode & 0o777:o}).",
                remedy=f"chmod {'700' if path.is_dir() else '600'} {path}",
            )
        if info.st_uid != owner:
            sound = False
            yield Finding(
                _PROBLEM,
                f"{path} belongs to user {info.st_uid}, and its directory to user {owner}.",
                remedy=f"chown -h {owner} {path}, as root",
            )
    if sound:
        yield Finding(_OK, "Only their owner can access the directory and its files.")


def _free_space(files: StoreFiles) -> Finding:
    if is_read_only(files.directory):
        what = f"{files.directory} cannot be written: no node can use it, but it can be read."
        return Finding(_NOTE, what, remedy="strongroom store export, to read what is in it")
    free = shutil.disk_usage(files.directory).free
    largest = max((_size(files.path(n)) for n in files.keystore.entries), default=0)
    if free < 2 * largest:
        return Finding(
            _PROBLEM,
            f"{free:,} bytes are free, and the largest store has {largest:,}: rotating its key "
            "needs space for a copy, and its log may grow.",
            remedy="free some space",
        )
    return Finding(_OK, f"{free:,} bytes are free; the largest store has {largest:,}.")


def _strangers(files: StoreFiles) -> Iterator[Finding]:
    own = {files.path(name) for name in files.keystore.entries}
    for path in files.stores():
        if path not in own:
            yield Finding(
                _PROBLEM,
                f"{path} is not a file of this node, or its keystore is an older one.",
                remedy=set_aside(path),
            )


def _size(path: Path) -> int:
    log = log_of(path)
    return sum(p.stat().st_size for p in (path, log) if p.exists())


# --- one store --------------------------------------------------------------------------------


class _Bytes:
    """Reports how many bytes of all stores were read."""

    def __init__(self, files: StoreFiles, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._sizes = {n: _size(files.path(n)) for n in files.keystore.entries}
        self._total = sum(self._sizes.values())
        self._ended = 0

    def within(self, namespace: str, part: float) -> None:
        """This part of a store, from 0 to 1, was read."""
        done = self._ended + int(min(part, 1) * self._sizes.get(namespace, 0))
        self._on_progress(namespace, done, self._total)

    def end(self, namespace: str) -> None:
        """A store was read completely."""
        self._ended += self._sizes.get(namespace, 0)
        self._on_progress(namespace, self._ended, self._total)


class _Reading:
    """Reads one store completely: authenticates every page, parses every record."""

    def __init__(
        self,
        files: StoreFiles,
        namespace: str,
        progress: _Bytes,
        store: KeyValueStore[Any] | None = None,
        *,
        running: bool = False,
    ) -> None:
        self._running = running
        self._chain = files.keystore.chain.copy()
        self._files = files
        self._store = store
        self._namespace = namespace
        self._progress = progress
        self.damage: list[str] = []
        """What is wrong with the structure of the file."""
        self._invalid: list[str] = []
        self._unknown = 0
        self._audit: list[AuditLine] = []

    def findings(self, connection: apsw.Connection) -> list[Finding]:
        """The findings about the store.

        Raises:
            StoreDamaged: A page holds bytes that were never valid.
        """
        self.damage = self._check_pages(connection)
        count = self._check_records(connection)
        key = self._files.keystore.entries[self._namespace].key.id
        found = [
            Finding(
                _PROBLEM,
                f"The structure of the file is wrong: {message}",
                self._namespace,
                "put the file back from a backup",
            )
            for message in self.damage
        ]
        found += [
            Finding(
                _PROBLEM,
                what,
                self._namespace,
                f"the program's upgrade= functions, or strongroom store put {self._namespace}",
            )
            for what in self._invalid[:NAMED_RECORDS]
        ]
        if self._unknown:
            what = f"{self._unknown} records have an unknown format and were not parsed."
            found.append(Finding(_NOTE, what, self._namespace))
        if self._namespace == NODE_META:
            found.append(self._check_audit())
        if not any(finding.level == _PROBLEM for finding in found):
            size = int(connection.execute("PRAGMA page_count").get)
            what = f"{count} records in {size} pages are sound (key {key})."
            found.insert(0, Finding(_OK, what, self._namespace))
        return found

    def _check_pages(self, connection: apsw.Connection) -> list[str]:
        total = int(connection.execute("PRAGMA page_count").get)

        def report() -> bool:
            read, _ = connection.status(apsw.SQLITE_DBSTATUS_CACHE_MISS)
            self._progress.within(self._namespace, read / (2 * max(total, 1)))
            return False

        connection.set_progress_handler(report, STEPS)
        messages = tables.problems(connection)
        connection.set_progress_handler(None)
        return messages

    def _check_records(self, connection: apsw.Connection) -> int:
        now = self._files.clock()
        total = tables.count(connection, "", now)
        count, after, more = 0, None, True
        while more:
            page = tables.scan(connection, "", now=now, after=after)
            for record in page.records:
                self._check_record(record)
            count += len(page.records)
            self._progress.within(self._namespace, 0.5 + count / (2 * max(total, 1)))
            more, after = page.more, page.records[-1].key if page.records else None
        return count

    def _check_record(self, record: Record) -> None:
        if self._namespace == NODE_META:
            if record.key.startswith(AUDIT):
                self._audit.append(msgspec.json.decode(record.value, type=AuditLine))
        elif self._store is not None:
            try:
                self._store.check(record)
            except RecordInvalid as error:
                self._invalid.append(str(error))
        elif split(record.value) is None:
            self._unknown += 1

    def _check_audit(self) -> Finding:
        try:
            count = self._chain.verify(self._audit, growing=self._running)
        except StorageError as error:
            return problem(error)
        return Finding(_OK, f"The {count} lines of the audit log are complete and unchanged.")


def _remembered(connection: apsw.Connection, now: int) -> list[Record]:
    seen = tables.read_long(connection, SEEN, now)
    watermarks = tables.scan(connection, MARK, now=now, limit=None, max_bytes=None)
    return [*([seen] if seen else []), *watermarks.records]


def _examine_copy(files: StoreFiles, namespace: str, progress: _Bytes) -> list[Finding]:
    """Check a private copy of a store's file and log."""
    path = files.path(namespace)
    if files.keystore.entries[namespace].state is KeyState.NEW:
        return [
            Finding(
                _NOTE, "Its creation was interrupted. The node will create it again.", namespace
            )
        ]
    copies = Path(tempfile.mkdtemp(prefix="strongroom-doctor-"))  # mode 0700
    try:
        for part in (path, log_of(path)):
            if part.exists():
                shutil.copyfile(part, copies / part.name)
        opened = open_store(files, namespace, copies / path.name)
        with contextlib.closing(opened.connection) as connection:
            if namespace == NODE_META:
                files.load_seen(_remembered(connection, files.clock()), opened.head.revision)
            return _Reading(files, namespace, progress).findings(connection)
    except apsw.Error as error:
        return [problem(database.explain(error, path, namespace), namespace)]
    except OSError as error:
        no_space = StoreUnavailable(
            f"{path} cannot be copied to {copies}: {error.strerror}.",
            remedy="set TMPDIR to a directory with enough space",
        )
        return [problem(no_space, namespace)]
    except StorageError as error:
        found = problem(error, namespace)
        what = found.what.replace(str(copies), str(files.directory))
        return [msgspec.structs.replace(found, what=what)]
    finally:
        shutil.rmtree(copies, ignore_errors=True)
