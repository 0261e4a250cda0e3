"""The file of a keystore, which only the master key opens.

It is never edited in place and has no write-ahead log: it is replaced by a complete new file, with
a new file id and so a new page key, that is renamed over the old one. While a node runs, changes go
to a file beside it (`changes.py`). No connection is kept.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from pathlib import Path

import apsw
import msgspec

from strongroom.disk import database
from strongroom.disk.changes import ID_SIZE, ChangesFile, Sealer, changes_of, read_changes
from strongroom.disk.directory import writing
from strongroom.disk.header import check_plain, read_header
from strongroom.disk.inspect import check_database
from strongroom.disk.remedies import put_back
from strongroom.errors import StoreDamaged, StoreMissing, StoreUnavailable, WrongMasterKey
from strongroom.keys.derive import FileKey, changes_key, file_key, new_file_id
from strongroom.keys.keystore import NAMESPACE, KeystoreChange, KeystoreContents
from strongroom.keys.master import MasterKey
from strongroom.threads import Threads

LEAST_CHANGES_BYTES = 256 * 1024
"""Changes may have as many bytes before the keystore is written whole again, or its own size."""

log = logging.getLogger(__name__)


class KeystoreFile:
    """Where a keystore keeps its contents. `master` is None for a plain keystore throughout."""

    def __init__(self, path: Path, threads: Threads) -> None:
        self.path = path
        self._threads = threads
        self._changes: ChangesFile | None = None
        self._whole_size = 0

    async def append(self, change: KeystoreChange) -> bool:
        """Save a change; False if the keystore has to be saved whole first."""
        return await self._threads.run(self._append, change)

    def _append(self, change: KeystoreChange) -> bool:
        changes = self._changes
        if changes is None or changes.size > max(LEAST_CHANGES_BYTES, self._whole_size):
            return False
        try:
            changes.append(msgspec.json.encode(change))
        except BaseException:
            self.close()  # what is in the file is unknown
            raise
        return True

    async def replace(self, contents: KeystoreContents, master: MasterKey | None) -> None:
        """Replace the file; the contents are durable when this returns."""
        await self._threads.run(self._replace, contents, master)

    def _replace(self, contents: KeystoreContents, master: MasterKey | None) -> None:
        self.close()
        contents.changes_id = secrets.token_bytes(ID_SIZE)
        root = write_keystore(self.path, contents, master, replace=True)
        self._whole_size = self.path.stat().st_size
        changes = changes_of(self.path)
        try:
            with writing(changes):
                changes.unlink(missing_ok=True)
            if contents.running:
                self._changes = ChangesFile(changes, _sealer(root, contents))
        except StoreUnavailable as error:  # then the next change writes the keystore whole
            log.warning("%s", error)

    def close(self) -> None:
        """Close what is open. Nothing is appended afterwards."""
        if self._changes is not None:
            self._changes.close()
            self._changes = None


def _sealer(root: bytes | None, contents: KeystoreContents) -> Sealer:
    key = None if root is None else changes_key(root, contents.changes_id)
    return Sealer(key, contents.changes_id)


def write_keystore(
    path: Path, contents: KeystoreContents, master: MasterKey | None, *, replace: bool
) -> bytes | None:
    """Write a keystore, and return its root. `replace`: there may be one already. Blocks.

    Raises:
        StoreUnavailable: The disk refused, or there is a file and `replace` is False.
    """
    encoded = msgspec.json.encode(contents)

    def fill(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE keystore (content BLOB NOT NULL)")
        connection.execute("INSERT INTO keystore VALUES (?)", (encoded,))

    key = root = None
    if master is not None:
        file_id = new_file_id()
        root = master.root(master.format, file_id)
        assert root is not None
        key = file_key(root, NAMESPACE, format=master.format, file_id=file_id)
    database.create(path, key, fill, replace=replace, write_ahead=False)
    return root


def read_keystore(path: Path, master: MasterKey | None) -> KeystoreContents:
    """Read a keystore. Blocks.

    Raises:
        DirectoryError: Something else than a file of ours is there.
        StoreMissing: There is no such file.
        StoreNotEncrypted: It is plain, and a master key was given.
        StoreDamaged: It holds bytes that were never valid.
        FormatUnsupported: A newer Strongroom wrote it.
        WrongMasterKey: It was written under another master key.
    """
    check_database(path)
    if not path.exists():
        raise StoreMissing(
            f"{path} is not there.", remedy=put_back(path), path=path, namespace=NAMESPACE
        )
    if master is None:
        check_plain(path)
    key, root = _opening_key(path, master) if master else (None, None)
    connection = database.open_existing(path, key, read_only=True, check_log=False)
    try:
        content = connection.execute("SELECT content FROM keystore").get
    except apsw.Error as error:
        raise database.explain(error, path, NAMESPACE) from error
    finally:
        connection.close()
    try:
        contents = msgspec.json.decode(content, type=KeystoreContents)
        if contents.changes_id:
            for change in read_changes(path, _sealer(root, contents)):
                contents.apply(msgspec.json.decode(change, type=KeystoreChange))
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreDamaged(
            f"{path} is damaged: {error}.", remedy=put_back(path), path=path
        ) from error
    return contents


def _opening_key(path: Path, master: MasterKey) -> tuple[FileKey, bytes]:
    """The key of a keystore, and the root from which it is derived."""
    header = read_header(path)
    root = master.root(header.format, header.file_id)
    if root:
        key = file_key(root, NAMESPACE, format=header.format, file_id=header.file_id)
        if hmac.compare_digest(key.header.check, header.check):
            if master.doubt:  # an earlier version took it as a passphrase
                log.warning("%s is under this passphrase, but: %s", path, master.doubt.what)
            return key, root
    if master.doubt:
        raise master.doubt
    raise WrongMasterKey(
        f"The master key does not open {path}: the data in {path.parent} was stored "
        "under another one. Nothing was changed.",
        remedy=(
            "set FAME_STORAGE_MASTER_KEY (or its _FILE or _COMMAND form) to the key that "
            "this directory was made with"
        ),
        path=path,
    )
