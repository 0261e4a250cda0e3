"""The files of one data directory: which of them belong there, and which key opens each.

What is refused here is refused before a byte is written. All of it waits for the disk: a provider
calls it on a thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

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
    KeystoreMissing,
    KeystoreOlder,
    NotStarted,
    ProfileMismatch,
    SettingsError,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreRolledBack,
    StoreSwapped,
    WrongMasterKey,
)
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.keys.keystore import DroppedFile, Entry, Keystore, State
from strongroom.keys.master import MasterKey, read_master_key
from strongroom.settings import StorageSettings
from strongroom.storage.records import Clock, Record
from strongroom.storage.sqlite import tables

META = "__node_meta"
AUDIT = "audit/"
MARK = "mark/"
PLAIN_SUFFIX = ".db"
ENCRYPTED_SUFFIX = "_encrypted_value.db"

log = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True):
    """What `__node_meta` remembers of a store, so that an older copy of its file is noticed."""

    revision: int = 0
    stamp: bytes = b""


class Known(msgspec.Struct, frozen=True):
    """What `__node_meta` remembers of the keystore."""

    generation: int
    namespaces: list[str]


class StoreFiles:
    """A data directory, its keystore, and one file for each namespace."""

    def __init__(self, settings: StorageSettings, clock: Clock, *, encrypts: bool) -> None:
        if settings.directory is None:
            raise SettingsError(
                f"The profile {settings.profile} needs FAME_STORAGE_DB_DIRECTORY.",
                remedy="FAME_STORAGE_DB_DIRECTORY=data",
            )
        self.directory = settings.directory.absolute()
        self.encrypts = encrypts
        self.suffix = ENCRYPTED_SUFFIX if encrypts else PLAIN_SUFFIX
        self.marks: dict[str, Mark] = {}
        self.known: Known | None = None
        self._settings = settings
        self.clock = clock
        self._lock: DirectoryLock | None = None
        self._keystore: Keystore | None = None

    @property
    def is_acquired(self) -> bool:
        """Whether the keystore was read."""
        return self._keystore is not None

    @property
    def keystore(self) -> Keystore:
        """The directory's keystore.

        Raises:
            NotStarted: The directory was not acquired yet.
        """
        if self._keystore is None:
            raise NotStarted(
                f"The storage in {self.directory} was not started.",
                remedy="await provider.start(), or open_provider(settings)",
            )
        return self._keystore

    def path(self, namespace: str) -> Path:
        """Where the file of a namespace stands."""
        return self.directory / f"{namespace}{self.suffix}"

    # --- the directory ------------------------------------------------------------------------

    def take(self) -> None:
        """Own the directory, and read its keystore or make a new one."""
        database.check_engine()
        master = read_master_key(self._settings) if self.encrypts else None
        make_directory(self.directory)
        check_filesystem(self.directory)
        self._lock = DirectoryLock(self.directory)
        self._check_profile()
        path = self.path(KEYSTORE)
        if path.exists():
            self._keystore = self._open_keystore(path, master)
            return
        if stores := self.stores():
            raise KeystoreMissing(
                (
                    f"{path} is not there, and {stores[0]} and {len(stores) - 1} other stores "
                    "cannot be opened without it. Nothing was changed."
                ),
                remedy="put the keystore back from a backup",
                path=path,
            )
        self._keystore = Keystore.create(path, master)

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Own the directory and read its keystore for a block, and write nothing."""
        database.check_engine()
        master = read_master_key(self._settings) if self.encrypts else None
        lock = DirectoryLock(self.directory)
        try:
            self._check_profile()
            self._keystore = Keystore.open(self.path(KEYSTORE), master)
            yield
        finally:
            lock.release()

    def release(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            self._lock.release()

    def _check_profile(self) -> None:
        """Raise ProfileMismatch where the files were made under the other profile."""
        found = sorted(self.directory.glob(f"*{PLAIN_SUFFIX}"))
        other = [f for f in found if f.name.endswith(ENCRYPTED_SUFFIX) != self.encrypts]
        if other:
            kind, profile = (
                ("plain", "sqlite") if self.encrypts else ("encrypted", "encrypted-sqlite")
            )
            raise ProfileMismatch(
                (
                    f"{other[0]} is a file of the profile {profile}, and the profile is "
                    f"{self._settings.profile}: this directory holds {kind} stores. Nothing was "
                    "changed."
                ),
                remedy=f"FAME_STORAGE_PROFILE={profile}, or another directory",
                path=other[0],
            )

    def _open_keystore(self, path: Path, master: MasterKey | None) -> Keystore:
        try:
            return Keystore.open(path, master)
        except WrongMasterKey:
            previous = self._settings.previous_master_key
            if previous is None or master is None:
                raise
            keystore = Keystore.open(path, MasterKey(previous))
            with keystore.change(master) as contents:
                contents.trail.add(self.clock(), "master key changed", detail="at the start")
            log.warning("%s was under the previous master key and is now under the new one", path)
            return keystore

    def stores(self) -> list[Path]:
        """The files of all stores, without the keystore's."""
        keystore = self.path(KEYSTORE)
        return sorted(p for p in self.directory.glob(f"*{self.suffix}") if p != keystore)

    def check(self, opened: Container[str]) -> None:
        """Look at every file before anything is written: no file too many, none too few.

        Those of the namespaces `opened` were looked at already.
        """
        entries = self.keystore.entries
        self._finish_drops()
        for path in self.stores():
            namespace = path.name.removesuffix(self.suffix)
            if namespace not in entries:
                raise self._not_ours(namespace, self._file_id(path))
        for namespace, entry in entries.items():
            if entry.state is not State.NEW and namespace not in opened:
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

    # --- one file ----------------------------------------------------------------------------

    def unlock(self, namespace: str) -> FileKey | None:
        """The key of a namespace's file, once its header shows that it is this file's.

        Must not be called while this process has the file open: closing the descriptor would drop
        SQLite's locks.
        """
        path, entry = self.path(namespace), self.keystore.entries[namespace]
        if not path.exists():
            raise StoreMissing(
                f"{path} is not there, and the keystore knows it. Nothing was changed.",
                remedy="put it back from a backup",
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
                    f"{path} is damaged: its key check (bytes 11 to 14) is not valid.",
                    remedy="put the file back from a backup",
                    path=path,
                    namespace=namespace,
                )
        raise self._not_ours(namespace, header.file_id)

    def _not_ours(self, namespace: str, file_id: bytes) -> StoreError:
        """What to say of a file with an id that is not the one which its name asks for."""
        path, owner = self.path(namespace), self.keystore.namespace_of(file_id)
        if owner == namespace:
            return StoreRolledBack(
                f"{path} is a copy from before its data key was rotated. Nothing was changed.",
                remedy="put the newest copy back",
                path=path,
                namespace=namespace,
            )
        if owner is not None:
            return StoreSwapped(
                f"{path} is the file of the namespace {owner!r}. Nothing was changed.",
                remedy="give the files back the names that they had",
                path=path,
                namespace=namespace,
            )
        return ForeignStore(
            (
                f"{path} is not a file of this node, or its keystore is an older one. Nothing "
                "was changed."
            ),
            remedy="move the file away, or put the newest keystore back",
            path=path,
            namespace=namespace,
        )

    def _file_id(self, path: Path) -> bytes:
        """The id in a file's header; plain files have none there."""
        return read_header(path).file_id if self.encrypts else b""

    def create(self, namespace: str) -> None:
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

    def drop(self, namespace: str) -> None:
        """Destroy a namespace's keys, then its file."""
        entry = self.keystore.entries[namespace]
        with self.keystore.change() as contents:
            del contents.entries[namespace]
            contents.retired = [r for r in contents.retired if r.namespace != namespace]
            contents.dropped = [DroppedFile(namespace, key.file_id) for key in entry.keys]
            contents.trail.add(self.clock(), "dropped", namespace)
        remove_with_journals(self.path(namespace))
        sync_directory(self.directory)

    # --- what __node_meta remembers ----------------------------------------------------------

    def recall(self, records: Iterable[Record]) -> None:
        """Take in what `__node_meta` remembers.

        Raises:
            KeystoreOlder: It remembers a newer keystore.
        """
        for record in records:
            if record.key == "keystore":
                self.known = msgspec.json.decode(record.value, type=Known)
                self._check_generation(self.known)
            elif record.key.startswith(MARK):
                mark = msgspec.json.decode(record.value, type=Mark)
                self.marks[record.key.removeprefix(MARK)] = mark

    def _check_generation(self, known: Known) -> None:
        if self.keystore.generation >= known.generation:
            return
        lacking = sorted(set(known.namespaces) - self.keystore.entries.keys())
        path = self.path(KEYSTORE)
        raise KeystoreOlder(
            (
                f"{path} is an older copy: generation {self.keystore.generation}, and "
                f"{known.generation} was seen last. It lacks the keys of: "
                f"{', '.join(lacking) or 'no namespace'}. Nothing was changed."
            ),
            remedy="put the newest keystore back",
            path=path,
        )

    def verify(self, namespace: str, head: tables.Head) -> bool:
        """Raise where a file is not the newest copy; returns whether all in it is marked."""
        path, entry = self.path(namespace), self.keystore.entries[namespace]
        if not self.encrypts and head.file_id != entry.key.file_id:
            raise self._not_ours(namespace, head.file_id)
        mark = self.marks.get(namespace, Mark())
        if head.revision < mark.revision or mark.stamp not in (head.stamp, head.previous_stamp):
            raise StoreRolledBack(
                (
                    f"{path} is an older copy of the store: it is at revision {head.revision}, "
                    f"and {META} remembers revision {mark.revision} of another copy. Nothing was "
                    "changed."
                ),
                remedy="put the newest copy back",
                path=path,
                namespace=namespace,
            )
        return head.revision == mark.revision
