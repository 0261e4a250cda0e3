"""The files of one data directory: which of them belong there, and which key opens each.

What is refused here is refused before a byte is written. The methods that are not coroutines wait
for the disk: call them on a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import msgspec

from strongroom.disk import database
from strongroom.disk.commits import Commits
from strongroom.disk.directory import (
    LOG_SUFFIX,
    DirectoryLock,
    check_filesystem,
    is_held_here,
    make_directory,
    remove_leftovers,
    remove_with_journals,
    sync_directory,
)
from strongroom.disk.header import check_plain, read_header
from strongroom.disk.inspect import check_database, check_directory, check_files, is_directory
from strongroom.disk.keyfile import KeystoreFile, read_keystore, write_keystore
from strongroom.disk.remedies import ENCRYPTED_SUFFIX, PLAIN_SUFFIX, put_back
from strongroom.errors import (
    DirectoryInUse,
    ForeignStore,
    KeystoreMissing,
    KeystoreOlder,
    NotStarted,
    ProfileMismatch,
    SettingsError,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreRolledBack,
    StoreSwapped,
    WrongMasterKey,
)
from strongroom.keys.derive import FileKey
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.keys.keystore import KeyState, Keystore, KeystoreContents
from strongroom.keys.master import MasterKey, read_master_key
from strongroom.settings import StorageSettings
from strongroom.storage.provider import NODE_META
from strongroom.storage.records import Clock, Record
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.open_files import OpenFiles
from strongroom.threads import Threads

# Keys of the records in NODE_META that are about the files.
AUDIT = "audit/"
MARK = "mark/"
SEEN = "keystore"

LOCK_SECONDS = 5
"""How long a start waits for the process that has the directory."""
LOCK_ATTEMPTS = 50

log = logging.getLogger(__name__)


class Watermark(msgspec.Struct, frozen=True):
    """How far a store had come, as NODE_META remembers it: an older copy of the file has less."""

    revision: int = 0
    stamp: bytes = b""


class KeystoreSeen(msgspec.Struct, frozen=True):
    """The newest keystore that was seen, as NODE_META remembers it."""

    generation: int
    namespaces: list[str]


def file_name(namespace: str, *, encrypts: bool) -> str:
    """The name of the file of a namespace, or of the keystore."""
    return namespace + (ENCRYPTED_SUFFIX if encrypts else PLAIN_SUFFIX)


class StoreFiles:
    """A data directory, its keystore, and one file for each namespace."""

    def __init__(
        self, settings: StorageSettings, clock: Clock, threads: Threads, *, encrypts: bool
    ) -> None:
        if settings.directory is None:
            raise SettingsError(
                f"The profile {settings.profile} needs FAME_STORAGE_DB_DIRECTORY.",
                remedy="FAME_STORAGE_DB_DIRECTORY=data",
            )
        self.directory = settings.directory.absolute()
        self.encrypts = encrypts
        self.clock = clock
        self.commits = Commits(self.directory)
        self.open_files = OpenFiles()
        self.watermarks: dict[str, Watermark] = {}
        self.seen: KeystoreSeen | None = None
        self._settings = settings
        self._threads = threads
        self._lock: DirectoryLock | None = None
        self._keystore: Keystore | None = None
        self._is_released = False

    @property
    def is_acquired(self) -> bool:
        """Whether the keystore was read."""
        return self._keystore is not None

    @property
    def keystore(self) -> Keystore:
        """The directory's keystore.

        Raises:
            NotStarted: The directory was not acquired yet.
            StoreClosed: It was given back.
        """
        if self._is_released:
            raise self.closed()
        if self._keystore is None:
            raise self.not_started()
        return self._keystore

    def not_started(self) -> NotStarted:
        """The error for a use of the directory before it was acquired."""
        return NotStarted(
            f"The storage in {self.directory} was not started.",
            remedy="await provider.start(), or open_provider(settings)",
        )

    def closed(self) -> StoreClosed:
        """The error for a use of the directory after its provider was closed."""
        return StoreClosed(
            f"The provider of {self.directory} was closed.",
            remedy="open another with open_provider(settings)",
            path=self.directory,
        )

    def path(self, namespace: str) -> Path:
        """Where the file of a namespace is."""
        return self.directory / file_name(namespace, encrypts=self.encrypts)

    def stores(self) -> list[Path]:
        """The files of all stores, without the keystore's."""
        found = self.directory.glob(f"*{file_name('', encrypts=self.encrypts)}")
        return sorted(path for path in found if path != self.path(KEYSTORE))

    def left_open(self) -> list[str]:
        """The namespaces whose files were in use when a process was killed."""
        suffix = file_name("", encrypts=self.encrypts) + LOG_SUFFIX
        logs = [path for path in self.directory.glob(f"*{suffix}") if path.stat().st_size]
        names = {path.name.removesuffix(suffix) for path in logs}
        return sorted(names & self.keystore.entries.keys())

    # --- the directory ------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Own the directory, and read its keystore or make a new one."""
        master = await self._threads.run(self._prepare)
        await self._wait_for_lock()
        await self._threads.run(self._check_contents)
        try:
            keystore = await self._threads.run(self._open_keystore, master)
        except WrongMasterKey:
            previous = self._settings.previous_master_key
            if previous is None or master is None:
                raise
            keystore = await self._threads.run(
                self._open_keystore, MasterKey(previous, existing=True)
            )
            await keystore.change_master(master, self.clock(), "at the start")
            log.warning(
                "%s was under the previous master key and is now under the new one",
                self.path(KEYSTORE),
            )
        self._keystore = keystore
        if keystore.was_killed and not self.commits.existed:
            log.warning(
                "%s: the node was not stopped cleanly, and %s is missing: if a log was lost too, "
                "so were the writes of the last seconds",
                self.directory,
                self.commits.path.name,
            )

    async def _wait_for_lock(self) -> None:
        """Lock the directory. Another process may still be closing it: wait for that a while."""
        for attempt in range(LOCK_ATTEMPTS):
            try:
                return await self._threads.run(self._take_lock)
            except DirectoryInUse as error:
                if is_held_here(self.directory):
                    raise
                if attempt == 0:
                    log.warning("%s Waiting %d s for it to end.", error.what, LOCK_SECONDS)
            await asyncio.sleep(LOCK_SECONDS / LOCK_ATTEMPTS)
        return await self._threads.run(self._take_lock)

    def _take_lock(self) -> None:
        self._lock = DirectoryLock(self.directory)

    def _prepare(self) -> MasterKey | None:
        database.check_engine()
        if is_directory(self.directory):
            check_directory(self.directory)
        master = self._read_master_key()
        make_directory(self.directory)
        check_filesystem(self.directory)
        return master

    def _check_contents(self) -> None:
        check_files(self.directory)
        self._check_profile()
        self.commits.load()
        self.commits.open()

    def _read_master_key(self) -> MasterKey | None:
        if not self.encrypts:
            return None
        return read_master_key(self._settings, existing=os.path.lexists(self.path(KEYSTORE)))

    def _open_keystore(self, master: MasterKey | None) -> Keystore:
        path = self.path(KEYSTORE)
        if path.exists():
            contents = read_keystore(path, master)
        elif stores := self.stores():
            raise KeystoreMissing(
                f"{path} is not there, and {stores[0]} and {len(stores) - 1} other stores "
                "cannot be opened without it. Nothing was changed.",
                remedy=(
                    "put the keystore back from a backup. Without one nobody can read the stores: "
                    "begin with another directory in FAME_STORAGE_DB_DIRECTORY"
                ),
                path=path,
            )
        else:
            contents = KeystoreContents(generation=1)
            write_keystore(path, contents, master, replace=False)
        return Keystore(KeystoreFile(path, self._threads), master, contents)

    @contextlib.contextmanager
    def inspecting(self) -> Iterator[None]:
        """Own the directory and read its keystore for a block, and write nothing."""
        database.check_engine()
        master = self._read_master_key()
        lock = DirectoryLock(self.directory)
        try:
            check_files(self.directory)
            self._check_profile()
            self.commits.load()
            path = self.path(KEYSTORE)
            contents = read_keystore(path, master)
            self._keystore = Keystore(KeystoreFile(path, self._threads), master, contents)
            yield
        finally:
            lock.release()

    def release(self) -> None:
        """Give the directory back."""
        was_killed = self._keystore.was_killed if self._keystore else self.commits.existed
        self.commits.close(is_awaited=was_killed)
        self._is_released = True
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
                f"{other[0]} is a file of the profile {profile}, and the profile is "
                f"{self._settings.profile}: this directory holds {kind} stores. Nothing was "
                "changed.",
                remedy=f"FAME_STORAGE_PROFILE={profile}, or another directory",
                path=other[0],
            )

    def check_files(self, opened: Container[str]) -> None:
        """Check that exactly the files that the keystore knows are there, before any is written.

        Those of the namespaces `opened` were checked already.
        """
        entries = self.keystore.entries
        self._finish_drops()
        for path in self.stores():
            namespace = path.name.removesuffix(file_name("", encrypts=self.encrypts))
            if namespace not in entries:
                raise self._not_ours(namespace, self._file_id(path))
        for namespace, entry in entries.items():
            if entry.state is not KeyState.NEW and namespace not in opened:
                self.unlock(namespace)
        remove_leftovers(self.directory)

    def _finish_drops(self) -> None:
        """Delete the files of stores that were dropped just before the node was killed."""
        for dropped in self.keystore.dropped:
            path = self.path(dropped.namespace)
            if path.exists() and dropped.namespace not in self.keystore.entries:
                if self.encrypts and self._file_id(path) != dropped.file_id:
                    continue
                self._remove(dropped.namespace)

    # --- one file ----------------------------------------------------------------------------

    def unlock(self, namespace: str) -> FileKey | None:
        """The key of a namespace's file, after checking that the file's header fits it.

        Must not be called while this process has the file open: closing the descriptor would drop
        SQLite's locks.
        """
        path, entry = self.path(namespace), self.keystore.entries[namespace]
        check_database(path)
        if not path.exists():
            raise StoreMissing(
                f"{path} is not there, and the keystore knows it. Nothing was changed.",
                remedy=put_back(path),
                path=path,
                namespace=namespace,
            )
        if not self.encrypts:
            check_plain(path)
            return None
        header = read_header(path)
        for data_key in entry.keys:
            if data_key.file_id == header.file_id:
                key = data_key.file_key(namespace)
                if key is not None and hmac.compare_digest(key.header.check, header.check):
                    return key
                raise StoreDamaged(
                    f"{path} is damaged: its key check (bytes 11 to 14) is not valid.",
                    remedy=put_back(path),
                    path=path,
                    namespace=namespace,
                )
        raise self._not_ours(namespace, header.file_id)

    def _not_ours(self, namespace: str, file_id: bytes) -> StoreError:
        """The error for a file whose id does not match its name."""
        path, owner = self.path(namespace), self.keystore.namespace_of(file_id)
        if owner == namespace:
            return StoreRolledBack(
                f"{path} is a copy from before its data key was rotated. Nothing was changed.",
                remedy=put_back(path),
                path=path,
                namespace=namespace,
            )
        if owner is not None:
            return StoreSwapped(
                f"{path} is the file of the namespace {owner!r}. Nothing was changed.",
                remedy=(
                    "give the files back the names that they had. If the other one is lost: "
                    f"strongroom store forget {namespace}, which sets this one aside"
                ),
                path=path,
                namespace=namespace,
            )
        return ForeignStore(
            f"{path} is not a file of this node, or its keystore is an older one. Nothing "
            "was changed.",
            remedy=(
                "put the newest keystore back, if this is an older one. If not: strongroom store "
                f"forget {namespace}, which sets the file aside"
            ),
            path=path,
            namespace=namespace,
        )

    def _file_id(self, path: Path) -> bytes:
        """The id in a file's header; plain files have none there."""
        return read_header(path).file_id if self.encrypts else b""

    async def create(self, namespace: str) -> None:
        """Create an empty store: make its key durable, then its file, and only then use it."""
        if namespace not in self.keystore.entries:
            await self._threads.run(self._check_is_free, namespace)
            await self.keystore.add(namespace, self.clock())
        await self._threads.run(self._create_file, namespace)
        await self.keystore.activate(namespace)

    def _check_is_free(self, namespace: str) -> None:
        path = self.path(namespace)
        if path.exists():
            raise self._not_ours(namespace, self._file_id(path))

    def _create_file(self, namespace: str) -> None:
        path, key = self.path(namespace), self.keystore.entries[namespace].key
        remove_with_journals(path)  # of a creation that was interrupted; it holds nothing
        database.create(
            path,
            key.file_key(namespace),
            lambda connection: tables.create(connection, namespace, key.file_id),
        )

    async def drop(self, namespace: str) -> None:
        """Destroy a namespace's keys, then its file."""
        await self.keystore.drop(namespace, self.clock())
        await self._threads.run(self._remove, namespace)

    def _remove(self, namespace: str) -> None:
        remove_with_journals(self.path(namespace))
        sync_directory(self.directory)

    # --- what NODE_META remembers -------------------------------------------------------------

    def load_seen(self, records: Iterable[Record], revision: int) -> None:
        """Load what NODE_META, at `revision`, remembers of the keystore and the stores.

        Raises:
            KeystoreOlder: It remembers a newer keystore.
            StoreRolledBack: The keystore remembers a newer NODE_META.
        """
        for record in records:
            if record.key == SEEN:
                self.seen = msgspec.json.decode(record.value, type=KeystoreSeen)
                self._check_generation(self.seen)
            elif record.key.startswith(MARK):
                watermark = msgspec.json.decode(record.value, type=Watermark)
                self.watermarks[record.key.removeprefix(MARK)] = watermark
        if revision < self.keystore.meta_revision:
            raise self._rolled_back(NODE_META, revision, self.keystore.meta_revision)

    def _check_generation(self, seen: KeystoreSeen) -> None:
        if self.keystore.generation >= seen.generation:
            return
        lacking = sorted(set(seen.namespaces) - self.keystore.entries.keys())
        path = self.path(KEYSTORE)
        raise KeystoreOlder(
            f"{path} is an older copy: generation {self.keystore.generation}, and "
            f"{seen.generation} was seen last. It lacks the keys of: "
            f"{', '.join(lacking) or 'no namespace'}. Nothing was changed.",
            remedy=(
                "put the newest keystore back. If it is lost: strongroom store accept __keystore"
            ),
            path=path,
        )

    def marked(self, namespace: str) -> int:
        """The revision that NODE_META remembers of a store."""
        return self.watermarks.get(namespace, Watermark()).revision

    def verify(self, namespace: str, head: tables.StoreHead, acknowledged: int) -> bool:
        """Check that a file is the newest copy; returns whether its watermark is up to date.

        `acknowledged` is a revision that it had before a kill, or 0.

        Raises:
            StoreRolledBack: It is an older copy.
            StoreError: It is the file of another namespace or node.
        """
        entry = self.keystore.entries[namespace]
        if not self.encrypts and head.file_id != entry.key.file_id:
            raise self._not_ours(namespace, head.file_id)
        seen = self.watermarks.get(namespace, Watermark())
        newest = max(seen.revision, acknowledged)
        if head.revision < newest or seen.stamp not in (head.stamp, head.previous_stamp):
            raise self._rolled_back(namespace, head.revision, newest)
        return head.revision == seen.revision

    def _rolled_back(self, namespace: str, found: int, known: int) -> StoreRolledBack:
        path = self.path(namespace)
        return StoreRolledBack(
            f"{path} is an older copy of the store: it is at revision {found}, and revision "
            f"{known} is known of another copy. Nothing was changed.",
            remedy=put_back(path),
            path=path,
            namespace=namespace,
        )
