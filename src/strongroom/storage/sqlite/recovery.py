"""Ways out of a refusal: an older copy of a file is taken as the truth, or a file is given up.

A directory has to be at rest. Everything that is sound in it stays as it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import apsw
import msgspec

from strongroom.disk import database
from strongroom.disk.directory import (
    JOURNAL_SUFFIX,
    LOG_SUFFIX,
    SHARED_MEMORY_SUFFIX,
    sync_directory,
    writing,
)
from strongroom.disk.header import read_header
from strongroom.disk.remedies import put_back
from strongroom.errors import InvalidNamespace, StorageError, StoreDamaged
from strongroom.keys.audit import AuditLine
from strongroom.keys.derive import FileKey
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.settings import StorageSettings
from strongroom.storage.provider import NODE_META
from strongroom.storage.records import Record, Write, system_clock
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.files import AUDIT, MARK, SEEN, StoreFiles, Watermark
from strongroom.storage.sqlite.store import SqliteStore
from strongroom.threads import Threads

SET_ASIDE = ".set-aside-"


class Found(msgspec.Struct):
    """A file that is refused, and what is known of it."""

    namespace: str
    path: Path
    revision: int | None = None
    """Its newest revision; None if it cannot be read."""
    known: int | None = None
    """The newest revision that is known of it, if that is known."""
    is_ours: bool = True
    """It is the file of this namespace, and not one that was put in its place."""
    aside: Path | None = None
    """Where `forget` has moved it, if it was not ours to delete."""


class Recovery:
    """Accepts and forgets the files of one directory."""

    def __init__(self, files: StoreFiles, threads: Threads) -> None:
        self._files = files
        self._threads = threads

    # --- an older copy is the truth -----------------------------------------------------------

    async def look(self, namespace: str) -> Found:
        """What is known of the file of a namespace, or of the keystore, before it is changed.

        Raises:
            InvalidNamespace: There is no such file, and none is expected.
        """
        files = self._files
        found = Found(namespace, files.path(namespace))
        if namespace == KEYSTORE:
            found.revision = files.keystore.generation
            return found
        if namespace not in files.keystore.entries and not found.path.exists():
            raise InvalidNamespace(
                f"There is no namespace {namespace!r}.", remedy="strongroom store ls"
            )
        found.is_ours = await self._threads.run(self._is_ours, found)
        if found.is_ours:
            try:
                head = await self._threads.run(self._head, found)
            except StorageError:
                pass
            else:
                found.revision = head.revision
        found.known = await self._known(namespace)
        return found

    async def accept(self, found: Found) -> None:
        """Take the file as it is, though it is older than what the node knows.

        Raises:
            StoreError: It is damaged, or is not the file of this namespace.
        """
        files, namespace = self._files, found.namespace
        if namespace == KEYSTORE:
            await self._accept_keystore(found)
            return
        if not found.is_ours:
            await self._threads.run(files.unlock, namespace)  # raises what is wrong
        head = await self._threads.run(self._sound_head, found)
        files.commits.forget(head.file_id)
        detail = f"at revision {head.revision}, and {found.known or 'none'} was known"
        await files.keystore.accept(namespace, head.file_id, system_clock(), detail)
        if namespace == NODE_META:
            await self._accept_node_meta(head.revision, detail)
        else:
            async with self._node_meta() as meta:
                await meta.apply([_mark(namespace, head)])

    async def _accept_keystore(self, found: Found) -> None:
        async with self._node_meta() as meta:
            await meta.apply([Write(SEEN, None)])
        await self._files.keystore.accept(
            KEYSTORE, None, system_clock(), f"of generation {found.revision}"
        )

    async def _accept_node_meta(self, revision: int, detail: str) -> None:
        """Let it know the other stores, and the audit log, as they are now."""
        async with self._node_meta() as meta:
            lines = (await meta.scan(AUDIT, limit=None, max_bytes=None)).records
            kept = await self._files.keystore.accept_node_meta(
                revision,
                [msgspec.json.decode(line.value, type=AuditLine) for line in lines],
                system_clock(),
                detail,
            )
            marks = (await meta.scan(MARK, limit=None, max_bytes=None)).records
            gone = {record.key: Write(record.key, None) for record in (*marks, *lines[kept:])}
            new = {write.key: write for write in await self._threads.run(self._marks)}
            await meta.apply(list((gone | new).values()))

    def _marks(self) -> list[Write]:
        """What NODE_META should know of the other stores; nothing of those that are refused."""
        marks = []
        for namespace in self._files.keystore.entries:
            found = Found(namespace, self._files.path(namespace))
            if namespace != NODE_META and found.path.exists() and self._is_ours(found):
                with suppress(StorageError):
                    marks.append(_mark(namespace, self._head(found)))
        return marks

    # --- what is sound ------------------------------------------------------------------------

    async def sound_records(self, found: Found) -> AsyncGenerator[Sequence[Record], None]:
        """The records of a damaged file that can be read, in the order in which they were made.

        Raises:
            StoreDamaged: At the end, if some cannot; or nothing can be read at all.
        """
        now = system_clock()
        connection = await self._threads.run(database.open_existing, found.path, self._key(found))
        with closing(connection):
            last = await self._threads.run(_last_row, connection, found)
            await self._files.keystore.note("exported", now, found.namespace, "what is sound")
            row, lost = 1, 0
            while row <= last:
                records, row, is_lost = await self._threads.run(
                    tables.sound_rows, connection, row, now
                )
                lost += is_lost
                if records:
                    yield records
        if lost:
            raise StoreDamaged(
                f"{found.path} is damaged: up to {lost} records cannot be read. The others are "
                "written.",
                remedy=put_back(found.path),
                path=found.path,
                namespace=found.namespace,
            )

    # --- a file is given up -------------------------------------------------------------------

    async def forget(self, found: Found) -> None:
        """Let the node start without a namespace. A file that is not the namespace's is moved."""
        files, namespace = self._files, found.namespace
        if namespace == KEYSTORE:
            raise InvalidNamespace(
                "The keystore cannot be forgotten: nobody could read the stores without it.",
                remedy="strongroom store accept __keystore, or another directory",
            )
        entry = files.keystore.entries.get(namespace)
        if found.path.exists():
            found.aside = await self._threads.run(self._put_aside, found.path)
        detail = "its file was deleted" if found.is_ours else f"the file is now {found.aside}"
        await files.keystore.forget(namespace, system_clock(), detail)
        if namespace == NODE_META:
            await files.create(NODE_META)
            await self._accept_node_meta(0, "made anew")
        for key in entry.keys if entry else ():
            files.commits.forget(key.file_id)
        if found.is_ours and found.aside is not None:
            await self._threads.run(self._delete, found.aside)
            found.aside = None

    def _put_aside(self, path: Path) -> Path:
        """Give a file, and what SQLite keeps beside it, names that no store has."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = path.with_name(f"{path.name}{SET_ASIDE}{stamp}")
        for suffix in (JOURNAL_SUFFIX, SHARED_MEMORY_SUFFIX, LOG_SUFFIX, ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                with writing(part):
                    part.rename(aside.with_name(aside.name + suffix))
        sync_directory(path.parent)
        return aside

    def _delete(self, path: Path) -> None:
        for suffix in (JOURNAL_SUFFIX, SHARED_MEMORY_SUFFIX, LOG_SUFFIX, ""):
            with writing(path):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        sync_directory(path.parent)

    # --- what is there ------------------------------------------------------------------------

    def _is_ours(self, found: Found) -> bool:
        """Whether a file, as far as it can be read, is the one of its namespace."""
        files, namespace = self._files, found.namespace
        if namespace not in files.keystore.entries:
            return False
        if not found.path.exists():
            return True
        try:
            return files.keystore.namespace_of(self._file_id(found)) == namespace
        except StorageError:
            return False

    def _file_id(self, found: Found) -> bytes:
        if self._files.encrypts:
            return read_header(found.path).file_id
        with closing(database.open_existing(found.path, None)) as connection:
            return tables.head(connection).file_id

    def _head(self, found: Found) -> tables.StoreHead:
        with closing(database.open_existing(found.path, self._key(found))) as connection:
            return tables.head(connection)

    def _sound_head(self, found: Found) -> tables.StoreHead:
        """The head of a file all of whose pages are sound."""
        with closing(database.open_existing(found.path, self._key(found))) as connection:
            if problems := tables.problems(connection):
                raise StoreDamaged(
                    f"{found.path} is damaged: {problems[0]}. Nothing was changed.",
                    remedy="another copy of the file, or strongroom store forget "
                    f"{found.namespace}",
                    path=found.path,
                    namespace=found.namespace,
                )
            return tables.head(connection)

    def _key(self, found: Found) -> FileKey | None:
        """The key of a file that is under any key that the namespace has had."""
        if not self._files.encrypts:
            return None
        keystore, file_id = self._files.keystore, read_header(found.path).file_id
        keys = [
            *keystore.entries[found.namespace].keys,
            *(old.key for old in keystore.retired if old.namespace == found.namespace),
        ]
        return next((k.file_key(found.namespace) for k in keys if k.file_id == file_id), None)

    async def _known(self, namespace: str) -> int | None:
        """The newest revision that is known of a store."""
        files = self._files
        if namespace == NODE_META:
            return files.keystore.meta_revision
        marked = 0
        try:
            async with self._node_meta() as meta:
                [record] = await meta.read([f"{MARK}{namespace}"])
        except StorageError:
            record = None
        if record is not None:
            marked = msgspec.json.decode(record.value, type=Watermark).revision
        entry = files.keystore.entries.get(namespace)
        noted = [files.commits.of(key.file_id) for key in entry.keys] if entry else []
        return max([marked, *(each.revision for each in noted if each)]) or None

    @asynccontextmanager
    async def _node_meta(self) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(self._files, NODE_META, self._threads)
        try:
            yield store
        finally:
            await store.close()


def _last_row(connection: apsw.Connection, found: Found) -> int:
    try:
        return tables.last_row(connection)
    except apsw.Error as error:
        raise database.explain(error, found.path, found.namespace) from error


def _mark(namespace: str, head: tables.StoreHead) -> Write:
    """Lets NODE_META know a store as it is."""
    mark = Watermark(head.revision, head.stamp)
    return Write(f"{MARK}{namespace}", msgspec.json.encode(mark))


@asynccontextmanager
async def recovering(settings: StorageSettings, *, encrypts: bool) -> AsyncIterator[Recovery]:
    """Own a directory that no node uses for the block.

    Raises:
        DirectoryInUse: A node uses it.
        DirectoryError: The keystore cannot be used.
    """
    threads = Threads(2)
    files = StoreFiles(settings, system_clock, threads, encrypts=encrypts)
    try:
        await files.acquire()
        yield Recovery(files, threads)
    finally:
        threads.close()
        files.release()
