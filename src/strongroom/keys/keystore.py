"""The keystore: one random data key for each namespace, in a file that only the master key opens.

It is never edited in place and has no write-ahead log: each change is a complete new file with a
file id, and so a page key, of its own, renamed over the old one. No connection is kept; what it
says lives in memory. Under a plain profile it holds the same entries without a secret.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import apsw
import msgspec

from strongroom.disk import database
from strongroom.disk.header import (
    RANDOM_KEY,
    FileKey,
    check_plain,
    file_key,
    new_file_id,
    read_header,
    same,
)
from strongroom.errors import StoreDamaged, StoreMissing, WrongMasterKey
from strongroom.keys.audit import Line, Trail, new_trail
from strongroom.keys.master import MasterKey

NAMESPACE = "__keystore"


class State(Enum):
    """Where an entry stands in its life."""

    NEW = "new"
    """Its file may be there or not, and holds nothing yet: it may be made again."""
    LIVE = "live"
    ROTATING = "rotating"
    """Its file is under `key` or under `next_key`; the file id in its header tells which."""


class DataKey(msgspec.Struct, frozen=True):
    """A data key and the one file that is under it. `secret` is empty under a plain profile."""

    id: str
    file_id: bytes
    secret: bytes
    created: int

    def __repr__(self) -> str:
        return f"DataKey(id={self.id!r})"

    def opens(self, namespace: str) -> FileKey | None:
        """The key of the file that holds `namespace`; None for a plain file."""
        if not self.secret:
            return None
        return file_key(self.secret, namespace, format=RANDOM_KEY, file_id=self.file_id)


class Entry(msgspec.Struct):
    """What the keystore knows of one namespace."""

    state: State
    key: DataKey
    next_key: DataKey | None = None

    @property
    def keys(self) -> list[DataKey]:
        """The keys under which its file may be."""
        return [self.key] if self.next_key is None else [self.key, self.next_key]


class RetiredKey(msgspec.Struct, frozen=True):
    """A data key that a rotation replaced; backups from before may still be under it."""

    namespace: str
    key: DataKey
    retired: int


class DroppedFile(msgspec.Struct, frozen=True):
    """A store that was dropped last: if its file is still there, the node was killed meanwhile."""

    namespace: str
    file_id: bytes


class Contents(msgspec.Struct):
    """All that the keystore holds. Every change of keys raises `generation` by one."""

    generation: int = 0
    entries: dict[str, Entry] = {}
    retired: list[RetiredKey] = []
    dropped: list[DroppedFile] = []
    trail: Trail = msgspec.field(default_factory=new_trail)


class Keystore:
    """The keystore of one data directory. Its methods block: call them off the event loop."""

    def __init__(self, path: Path, master: MasterKey | None, contents: Contents) -> None:
        self.path = path
        self._master = master
        self._contents = contents
        self._changing = threading.Lock()

    @classmethod
    def create(cls, path: Path, master: MasterKey | None) -> Keystore:
        """Make the keystore of a new directory; `master` None makes a plain one."""
        keystore = cls(path, master, Contents())
        keystore._save(Contents(generation=1), master, replace=False)
        return keystore

    @classmethod
    def open(cls, path: Path, master: MasterKey | None) -> Keystore:
        """Read the keystore.

        Raises:
            StoreMissing: There is no such file.
            StoreNotEncrypted: It is plain, and a master key was given.
            StoreDamaged: It holds bytes that were never valid.
            FormatUnsupported: A newer Strongroom wrote it.
            WrongMasterKey: It was made under another master key.
        """
        if not path.exists():
            raise StoreMissing(f"{path} is not there.", path=path, namespace=NAMESPACE)
        if master is None:
            check_plain(path)
        key = _opening_key(path, master) if master else None
        connection = database.open_existing(path, key, read_only=True, check_log=False)
        try:
            content = connection.execute("SELECT content FROM keystore").get
        except apsw.Error as error:
            raise database.explain(error, path, NAMESPACE) from error
        finally:
            connection.close()
        try:
            return cls(path, master, msgspec.json.decode(content, type=Contents))
        except (msgspec.DecodeError, TypeError) as error:
            raise StoreDamaged(
                f"{path} is damaged: {error}.", remedy="put it back from a backup", path=path
            ) from error

    @property
    def generation(self) -> int:
        """How many times the keystore was changed."""
        return self._contents.generation

    @property
    def encrypted(self) -> bool:
        """Whether the keystore and the stores that it knows are encrypted."""
        return self._master is not None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the master key that it is under."""
        return self._master.fingerprint if self._master else "none"

    @property
    def entries(self) -> dict[str, Entry]:
        """What is known of each namespace. Change it only in `change`."""
        return self._contents.entries

    @property
    def retired(self) -> list[RetiredKey]:
        """The data keys that rotations replaced."""
        return self._contents.retired

    @property
    def dropped(self) -> list[DroppedFile]:
        """The stores whose files the last drop was to delete."""
        return self._contents.dropped

    @property
    def trail(self) -> Trail:
        """The end of the audit log."""
        return self._contents.trail

    def new_data_key(self, now: int) -> DataKey:
        """A new random data key for a new file; kept only once `change` puts it in an entry."""
        secret = secrets.token_bytes(32) if self._master else b""
        return DataKey(secrets.token_hex(4), new_file_id(), secret, now)

    @contextlib.contextmanager
    def change(self, master: MasterKey | None = None) -> Iterator[Contents]:
        """Change the contents; they are durable when the block ends, and unchanged if it raises.

        Args:
            master: Another master key for the keystore. The data's keys, and the data, stay.
        """
        with self._changing:
            contents = self._copy()
            yield contents
            contents.generation += 1
            self._save(contents, master or self._master, replace=True)

    def note(
        self,
        now: int,
        event: str,
        namespace: str | None = None,
        detail: str = "",
        *,
        newest: Line | None = None,
    ) -> None:
        """Add a line to the audit log. As no key changes, the generation stays.

        Args:
            now: The time.
            event: What happened.
            namespace: Where.
            detail: More about it.
            newest: The last line that `__node_meta` holds, which the keystore should know.
        """
        with self._changing:
            contents = self._copy()
            if newest is not None:
                contents.trail.catch_up(newest, now)
            contents.trail.add(now, event, namespace, detail)
            self._save(contents, self._master, replace=True)

    def _copy(self) -> Contents:
        """What is kept, to be changed: read back from its own encoding, as it comes from a file."""
        return msgspec.json.decode(msgspec.json.encode(self._contents), type=Contents)

    def namespace_of(self, file_id: bytes) -> str | None:
        """The namespace whose file has or had this id; None if the keystore knows no such file."""
        for namespace, entry in self._contents.entries.items():
            if any(key.file_id == file_id for key in entry.keys):
                return namespace
        was = (old.namespace for old in self._contents.retired if old.key.file_id == file_id)
        return next(was, None)

    def _save(self, contents: Contents, master: MasterKey | None, *, replace: bool) -> None:
        encoded = msgspec.json.encode(contents)

        def fill(connection: apsw.Connection) -> None:
            connection.execute("CREATE TABLE keystore (content BLOB NOT NULL)")
            connection.execute("INSERT INTO keystore VALUES (?)", (encoded,))

        key = None
        if master is not None:
            file_id = new_file_id()
            root = master.root(master.format, file_id)
            assert root is not None
            key = file_key(root, NAMESPACE, format=master.format, file_id=file_id)
        database.create(self.path, key, fill, replace=replace, write_ahead=False)
        self._master, self._contents = master, contents


def _opening_key(path: Path, master: MasterKey) -> FileKey:
    header = read_header(path)
    root = master.root(header.format, header.file_id)
    if root:
        key = file_key(root, NAMESPACE, format=header.format, file_id=header.file_id)
        if same(key.header.check, header.check):
            return key
    raise WrongMasterKey(
        (
            f"The master key does not open {path}: the data in {path.parent} was stored "
            "under another one. Nothing was changed."
        ),
        remedy=(
            "set FAME_STORAGE_MASTER_KEY (or its _FILE or _COMMAND form) to the key that "
            "this directory was made with"
        ),
        path=path,
    )
