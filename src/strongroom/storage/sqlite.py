"""A data directory: one SQLite file for each namespace, encrypted or plain, and the keystore."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar

import msgspec

from strongroom.disk import database
from strongroom.disk.directory import (
    DirectoryLock,
    check_filesystem,
    make_directory,
    remove_leftovers,
    remove_with_journals,
    sync_directory,
)
from strongroom.disk.header import FileKey, check_plain, read_header, same
from strongroom.errors import (
    ForeignStore,
    InvalidNamespace,
    KeystoreMissing,
    KeystoreOlder,
    NotSupported,
    ProfileMismatch,
    SettingsError,
    StorageError,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreRolledBack,
    StoreSwapped,
    WrongMasterKey,
)
from strongroom.keys.audit import Line
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.keys.keystore import DroppedFile, Entry, Keystore, State
from strongroom.keys.master import MasterKey, read_master_key
from strongroom.settings import StorageSettings
from strongroom.storage import rotation, tables
from strongroom.storage.namespace import SqliteStore
from strongroom.storage.records import (
    Clock,
    Record,
    StorageProvider,
    Write,
    check_namespace,
    system_clock,
)
from strongroom.storage.rotation import Copy, Progress

META = "__node_meta"
AUDIT = "audit/"
MARK = "mark/"
PLAIN_SUFFIX = ".db"
ENCRYPTED_SUFFIX = "_encrypted_value.db"
TICK_SECONDS = 1.0
MARK_TICKS = 5
IDLE_TICKS = 5
THREADS = 8

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True):
    """What `__node_meta` remembers of a store, so that an older copy of its file is noticed."""

    revision: int = 0
    stamp: bytes = b""


class Known(msgspec.Struct, frozen=True):
    """What `__node_meta` remembers of the keystore."""

    generation: int
    namespaces: list[str]


class SqliteProvider(StorageProvider):
    """Keeps each namespace in a plain SQLite file of its own, `<namespace>.db`."""

    needs_directory: ClassVar[bool] = True
    encrypts: ClassVar[bool] = False
    suffix: ClassVar[str] = PLAIN_SUFFIX

    directory: Path
    keystore: Keystore

    def __init__(self, settings: StorageSettings, clock: Clock = system_clock) -> None:
        super().__init__(settings, clock)
        self._marks: dict[str, Mark] = {}
        self._known: Known | None = None

    async def start(self) -> None:
        self.directory = self._directory()
        self._stores: dict[str, SqliteStore] = {}
        self._changing = asyncio.Lock()
        self._rotating = asyncio.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="strongroom")
        self._ticking: asyncio.Task[None] | None = None
        self._lock: DirectoryLock | None = None
        try:
            await self._blocking(self._take_directory)
            await self._recall()
            await self._blocking(self._check_files)
            await self.open(META)
            await self._note_opening()
        except BaseException:
            await self._release()
            raise
        self._ticking = asyncio.create_task(self._tick(), name=f"tick of {self.directory}")

    # --- the contract -------------------------------------------------------------------------

    async def open(self, namespace: str) -> SqliteStore:
        self._refuse_closed()
        store = self._stores.get(namespace)
        if store is None or store.closed:
            async with self._changing:
                store = self._stores.get(namespace)
                if store is None or store.closed:
                    store = await self._open(namespace)
        return store

    async def namespaces(self) -> list[str]:
        return sorted(self.keystore.entries)

    async def drop(self, namespace: str) -> None:
        if namespace == META:
            raise InvalidNamespace(f"{META} is the node's own, and cannot be dropped.")
        async with self._rotating, self._changing:
            if namespace not in self.keystore.entries:
                return
            if store := self._stores.pop(namespace, None):
                await store.close()
            await self._blocking(self._drop, namespace)
            self._marks.pop(namespace, None)
            await self._meta.apply([Write(f"{MARK}{namespace}", None)])
        await self._remember_keystore()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        async with self._rotating, self._changing:
            try:
                await self._mark(
                    [store for store in self._stores.values() if self._unmarked(store)]
                )
            finally:
                await self._release()

    # --- for the operator ---------------------------------------------------------------------

    async def change_master(self, master: MasterKey) -> None:
        """Put the keystore under another master key. The data stays as it is."""
        self._require_keys()
        await self._blocking(self._change_master, master)
        await self._remember_keystore()

    async def rotate(
        self, namespaces: Sequence[str] | None = None, progress: Progress | None = None
    ) -> list[str]:
        """Put namespaces under new data keys, while they are in use; returns which.

        Args:
            namespaces: None for those that an earlier rotation left behind, else for all.
            progress: Is told how far each copy is.
        """
        self._require_keys()
        async with self._rotating:
            begun = await self._blocking(rotation.begin, self.keystore, namespaces, self.clock())
            for namespace in begun:
                await self._rotate(namespace, progress or (lambda *_: None))
                await self._blocking(rotation.finish, self.keystore, namespace, self.clock())
                await self._remember_keystore()
        return begun

    async def note(self, event: str, namespace: str | None = None, detail: str = "") -> None:
        """Add a line to the audit log."""
        await self._blocking(self.keystore.note, self.clock(), event, namespace, detail)
        await self._remember_keystore()

    async def audit(self) -> list[Line]:
        """The audit log, from its first line on."""
        page = await self._meta.scan(AUDIT, limit=None, max_bytes=None)
        return [msgspec.json.decode(record.value, type=Line) for record in page.records]

    # --- the directory ------------------------------------------------------------------------

    def path(self, namespace: str) -> Path:
        """Where the file of a namespace stands."""
        return self.directory / f"{namespace}{self.suffix}"

    def _take_directory(self) -> None:
        """Own the directory, and read its keystore or make a new one."""
        database.check_engine()
        master = read_master_key(self.settings) if self.encrypts else None
        make_directory(self.directory)
        check_filesystem(self.directory)
        self._lock = DirectoryLock(self.directory)
        self._check_profile()
        path = self.path(KEYSTORE)
        if path.exists():
            self.keystore = self._open_keystore(path, master)
            return
        if stores := self._files():
            raise KeystoreMissing(
                f"{path} is not there, and {stores[0]} and {len(stores) - 1} other stores cannot "
                "be opened without it. Nothing was changed. Try: put the keystore back from a "
                "backup.",
                path=path,
            )
        self.keystore = Keystore.create(path, master)

    def _check_profile(self) -> None:
        """Raise ProfileMismatch where the files were made under the other profile."""
        found = sorted(self.directory.glob(f"*{PLAIN_SUFFIX}"))
        other = [f for f in found if f.name.endswith(ENCRYPTED_SUFFIX) != self.encrypts]
        if other:
            kind, profile = (
                ("plain", "sqlite") if self.encrypts else ("encrypted", "encrypted-sqlite")
            )
            raise ProfileMismatch(
                f"{other[0]} is a file of the profile {profile}, and the profile is "
                f"{self.settings.profile}: this directory holds {kind} stores. Nothing was "
                f"changed. Try: FAME_STORAGE_PROFILE={profile}, or another directory",
                path=other[0],
            )

    def _open_keystore(self, path: Path, master: MasterKey | None) -> Keystore:
        try:
            return Keystore.open(path, master)
        except WrongMasterKey:
            previous = self.settings.previous_master_key
            if previous is None or master is None:
                raise
            keystore = Keystore.open(path, MasterKey(previous))
            with keystore.change(master) as contents:
                contents.trail.add(self.clock(), "master key changed", detail="at the start")
            log.warning("%s was under the previous master key and is now under the new one", path)
            return keystore

    def _files(self) -> list[Path]:
        """The files of all stores, without the keystore's."""
        keystore = self.path(KEYSTORE)
        return sorted(p for p in self.directory.glob(f"*{self.suffix}") if p != keystore)

    def _check_files(self) -> None:
        """Look at every file before anything is written: no file too many, none too few."""
        entries = self.keystore.entries
        self._finish_drops()
        for path in self._files():
            namespace = path.name.removesuffix(self.suffix)
            if namespace not in entries:
                raise self._not_ours(namespace, self._file_id(path))
        for namespace, entry in entries.items():
            if entry.state is not State.NEW and namespace not in self._stores:
                self.unlock(namespace)
        remove_leftovers(self.directory)

    def _finish_drops(self) -> None:
        """Delete the files of stores that were dropped just before the node was killed."""
        for dropped in self.keystore.dropped:
            path = self.path(dropped.namespace)
            if path.exists() and dropped.namespace not in self.keystore.entries:
                if self.encrypts and self._file_id(path) != dropped.file_id:
                    continue
                remove_with_journals(path)
                sync_directory(self.directory)

    def unlock(self, namespace: str) -> FileKey | None:
        """The key of a namespace's file, once its header shows that it is this file's.

        Must not be called while this process has the file open: closing the descriptor would drop
        SQLite's locks.
        """
        path, entry = self.path(namespace), self.keystore.entries[namespace]
        if not path.exists():
            raise StoreMissing(
                f"{path} is not there, and the keystore knows it. Nothing was changed. Try: put it "
                "back from a backup.",
                path=path,
                namespace=namespace,
            )
        if not self.encrypts:
            check_plain(path)
            return None
        header = read_header(path)
        for data_key in entry.keys:
            if data_key.file_id == header.file_id:
                key = data_key.opens(namespace)
                if key is not None and same(key.header.check, header.check):
                    return key
                raise StoreDamaged(
                    f"{path} is damaged: its key check (bytes 11 to 14) is not valid. Try: put the "
                    "file back from a backup.",
                    path=path,
                    namespace=namespace,
                )
        raise self._not_ours(namespace, header.file_id)

    def _not_ours(self, namespace: str, file_id: bytes) -> StoreError:
        """What to say of a file with an id that is not the one which its name asks for."""
        path, owner = self.path(namespace), self.keystore.namespace_of(file_id)
        if owner is not None:
            return StoreSwapped(
                f"{path} is the file of the namespace {owner!r}. Nothing was changed. Try: give "
                "the files back the names that they had.",
                path=path,
                namespace=namespace,
            )
        return ForeignStore(
            f"{path} is not a file of this node, or its keystore is an older one. Nothing was "
            "changed. Try: move the file away, or put the newest keystore back.",
            path=path,
            namespace=namespace,
        )

    def _file_id(self, path: Path) -> bytes:
        """The id in a file's header; plain files have none there."""
        return read_header(path).file_id if self.encrypts else b""

    # --- namespaces ---------------------------------------------------------------------------

    @property
    def _meta(self) -> SqliteStore:
        return self._stores[META]

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreClosed(f"The provider of {self.directory} was closed.", path=self.directory)

    @contextlib.contextmanager
    def unstarted(self) -> Iterator[None]:
        """Own the directory and read its keystore for an inspection, which writes nothing."""
        database.check_engine()
        master = read_master_key(self.settings) if self.encrypts else None
        self.directory = self._directory()
        lock = DirectoryLock(self.directory)
        try:
            self._check_profile()
            self.keystore = Keystore.open(self.path(KEYSTORE), master)
            yield
        finally:
            lock.release()

    def _directory(self) -> Path:
        if self.settings.directory is None:
            raise SettingsError(
                f"The profile {self.settings.profile} needs FAME_STORAGE_DB_DIRECTORY. "
                "Try: FAME_STORAGE_DB_DIRECTORY=data"
            )
        return self.settings.directory.absolute()

    def _require_keys(self) -> None:
        if not self.encrypts:
            raise NotSupported(
                f"The profile {self.settings.profile} encrypts nothing, and so has no keys."
            )

    async def _open(self, namespace: str) -> SqliteStore:
        entry = self.keystore.entries.get(namespace)
        if entry is None:
            check_namespace(namespace, self.keystore.entries)
        if entry is None or entry.state is State.NEW:
            await self._blocking(self._create, namespace)
            if namespace != META:
                await self._remember_keystore()
        store = SqliteStore(
            self.path(namespace),
            namespace,
            unlock=lambda: self.unlock(namespace),
            verify=lambda head: self.verify(namespace, head),
            clock=self.clock,
            threads=self._threads,
        )
        try:
            await store.open()
        except BaseException:
            await store.close()
            raise
        self._stores[namespace] = store
        return store

    def _create(self, namespace: str) -> None:
        """Make an empty store: first its key is durable, then its file, then its use begins."""
        path, entry = self.path(namespace), self.keystore.entries.get(namespace)
        if entry is None:
            if path.exists():
                raise self._not_ours(namespace, self._file_id(path))
            entry = Entry(State.NEW, self.keystore.new_data_key(self.clock()))
            with self.keystore.change() as contents:
                contents.entries[namespace] = entry
        remove_with_journals(path)  # of a creation that was cut short; it holds nothing
        data_key = entry.key
        database.create(
            path,
            data_key.opens(namespace),
            lambda connection: tables.create(connection, namespace, data_key.file_id),
        )
        with self.keystore.change() as contents:
            contents.entries[namespace].state = State.LIVE

    def _drop(self, namespace: str) -> None:
        entry = self.keystore.entries[namespace]
        with self.keystore.change() as contents:
            del contents.entries[namespace]
            contents.retired = [r for r in contents.retired if r.namespace != namespace]
            contents.dropped = [DroppedFile(namespace, key.file_id) for key in entry.keys]
            contents.trail.add(self.clock(), "dropped", namespace)
        remove_with_journals(self.path(namespace))
        sync_directory(self.directory)

    def _change_master(self, master: MasterKey) -> None:
        with self.keystore.change(master) as contents:
            contents.trail.add(self.clock(), "master key changed")

    async def _rotate(self, namespace: str, progress: Progress) -> None:
        """Copy a namespace's file under its next key, and let the copy take its place."""
        store = await self.open(namespace)
        key = self.keystore.entries[namespace].next_key
        assert key is not None
        head = await store.on_writer(tables.head)
        if head.file_id == key.file_id:
            return  # it did so, and then the keystore could not be written
        copy = await self._blocking(Copy, store.path, namespace, key)
        try:
            done, pages = await store.on_writer(copy.step)
            while pages - done > rotation.STEP_PAGES:
                done, pages = await store.on_writer(copy.step)
                progress(namespace, done, pages)
                self._refuse_closed()
            await self._blocking(copy.sync)
            await store.replace(copy.complete, copy.take_place)
            progress(namespace, pages, pages)
        finally:
            await asyncio.shield(self._discard(store, copy))

    async def _discard(self, store: SqliteStore, copy: Copy) -> None:
        try:
            await store.on_writer(copy.discard)
        except StorageError:  # it is closed, or cannot be opened: nobody uses the copy
            await self._blocking(copy.discard)
        await self._blocking(copy.free)

    # --- what __node_meta remembers -----------------------------------------------------------

    async def _recall(self) -> None:
        """Read what `__node_meta` remembers, and compare the keystore with it."""
        entry = self.keystore.entries.get(META)
        if entry is None or entry.state is State.NEW:
            return
        meta = await self.open(META)
        known = await meta.read(["keystore"])
        marks = await meta.scan(MARK, limit=None, max_bytes=None)
        self.recall([record for record in known if record] + marks.records)

    def recall(self, records: Iterable[Record]) -> None:
        """Take in what `__node_meta` remembers.

        Raises:
            KeystoreOlder: It remembers a newer keystore.
        """
        for record in records:
            if record.key == "keystore":
                self._known = msgspec.json.decode(record.value, type=Known)
                self._check_generation(self._known)
            elif record.key.startswith(MARK):
                mark = msgspec.json.decode(record.value, type=Mark)
                self._marks[record.key.removeprefix(MARK)] = mark

    def _check_generation(self, known: Known) -> None:
        if self.keystore.generation >= known.generation:
            return
        lacking = sorted(set(known.namespaces) - self.keystore.entries.keys())
        path = self.path(KEYSTORE)
        raise KeystoreOlder(
            f"{path} is an older copy: generation {self.keystore.generation}, and "
            f"{known.generation} was seen last. It lacks the keys of: "
            f"{', '.join(lacking) or 'no namespace'}. Nothing was changed. Try: put the newest "
            "keystore back.",
            path=path,
        )

    def verify(self, namespace: str, head: tables.Head) -> bool:
        """Raise where a file is not the newest copy; returns whether all in it is marked."""
        path, entry = self.path(namespace), self.keystore.entries[namespace]
        if not self.encrypts and head.file_id != entry.key.file_id:
            raise self._not_ours(namespace, head.file_id)
        mark = self._marks.get(namespace, Mark())
        if head.revision < mark.revision or mark.stamp not in (head.stamp, head.previous_stamp):
            raise StoreRolledBack(
                f"{path} is an older copy of the store: it is at revision {head.revision}, and "
                f"{META} remembers revision {mark.revision} of another copy. Nothing was changed. "
                "Try: put the newest copy back.",
                path=path,
                namespace=namespace,
            )
        return head.revision == mark.revision

    async def _note_opening(self) -> None:
        page = await self._meta.scan(AUDIT, limit=1, reverse=True)
        newest = [msgspec.json.decode(record.value, type=Line) for record in page.records]
        await self._blocking(
            self.keystore.note,
            self.clock(),
            "opened",
            detail=f"by user {os.getuid()}, process {os.getpid()}",
            newest=newest[0] if newest else None,
        )
        await self._remember_keystore()

    async def _remember_keystore(self) -> None:
        """Note the keystore's generation, and the lines of the audit log that wait in it."""
        known = Known(self.keystore.generation, sorted(self.keystore.entries))
        lines = self.keystore.trail.waiting
        writes = [Write(f"{AUDIT}{line.number:010}", msgspec.json.encode(line)) for line in lines]
        if known != self._known:
            writes.append(Write("keystore", msgspec.json.encode(known)))
        if writes:
            await self._meta.apply(writes)
            self._known = known
            self.keystore.trail.stored(lines[-1].number if lines else 0)

    async def _mark(self, stores: list[SqliteStore]) -> None:
        """Note how far stores have come, in their files first and then in `__node_meta`."""
        writes = []
        for store in stores:
            stamp = secrets.token_bytes(8)
            known = self._marks.get(store.namespace, Mark()).stamp
            mark = Mark(await store.mark(stamp, known), stamp)
            self._marks[store.namespace] = mark
            writes.append(Write(f"{MARK}{store.namespace}", msgspec.json.encode(mark)))
        if writes:
            await self._meta.apply(writes)

    def _unmarked(self, store: SqliteStore) -> bool:
        return not (store.marked or store.closed or store.namespace == META)

    # --- in the background --------------------------------------------------------------------

    async def _tick(self) -> None:
        """Every second: let expired records go, mark what was written, rest what is idle."""
        idle: dict[str, int] = {}
        for number in itertools.count(1):
            await asyncio.sleep(TICK_SECONDS)
            for namespace, store in list(self._stores.items()):
                try:
                    await store.sweep()
                    idle[namespace] = 0 if store.used else idle.get(namespace, 0) + 1
                    store.used = False
                    if number % MARK_TICKS == 0 and self._unmarked(store):
                        await self._mark([store])
                    if idle[namespace] >= IDLE_TICKS and not store.resting:
                        await store.rest()
                except StorageError as error:
                    log.warning("%s", error)

    async def _release(self) -> None:
        """Close all that is open, `__node_meta` last, and give the directory back."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        meta = self._stores.pop(META, None)
        for store in [*self._stores.values(), *([meta] if meta else [])]:
            await store.close()
        self._stores.clear()
        self._threads.shutdown(wait=True)
        if self._lock is not None:
            self._lock.release()

    async def _blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for the disk on a thread; it is finished even when cancelled."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise


class EncryptedSqliteProvider(SqliteProvider):
    """Keeps each namespace in an encrypted file of its own, `<namespace>_encrypted_value.db`."""

    encrypts: ClassVar[bool] = True
    suffix: ClassVar[str] = ENCRYPTED_SUFFIX
