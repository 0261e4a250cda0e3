"""The file of a keystore, which only the master key opens.

It is never edited in place and has no write-ahead log: each change is a complete new file, with a
new file id and so a new page key, that is renamed over the old one. No connection is kept.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

import apsw
import msgspec

from strongroom.disk import database
from strongroom.disk.header import check_plain, read_header
from strongroom.disk.inspect import check_database
from strongroom.disk.remedies import put_back
from strongroom.errors import StoreDamaged, StoreMissing, WrongMasterKey
from strongroom.keys.derive import FileKey, file_key, new_file_id
from strongroom.keys.keystore import NAMESPACE, KeystoreContents
from strongroom.keys.master import MasterKey
from strongroom.threads import Threads

log = logging.getLogger(__name__)


class KeystoreFile:
    """Where a keystore keeps its contents. `master` is None for a plain keystore throughout."""

    def __init__(self, path: Path, threads: Threads) -> None:
        self.path = path
        self._threads = threads

    async def save(self, contents: KeystoreContents, master: MasterKey | None) -> None:
        """Replace the file; the contents are durable when this returns."""
        await self._threads.run(write_keystore, self.path, contents, master, replace=True)


def write_keystore(
    path: Path, contents: KeystoreContents, master: MasterKey | None, *, replace: bool
) -> None:
    """Write a keystore. `replace` says whether there may be one already. Blocks.

    Raises:
        StoreUnavailable: The disk refused, or there is a file and `replace` is False.
    """
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
    database.create(path, key, fill, replace=replace, write_ahead=False)


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
    key = _opening_key(path, master) if master else None
    connection = database.open_existing(path, key, read_only=True, check_log=False)
    try:
        content = connection.execute("SELECT content FROM keystore").get
    except apsw.Error as error:
        raise database.explain(error, path, NAMESPACE) from error
    finally:
        connection.close()
    try:
        return msgspec.json.decode(content, type=KeystoreContents)
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreDamaged(
            f"{path} is damaged: {error}.", remedy=put_back(path), path=path
        ) from error


def _opening_key(path: Path, master: MasterKey) -> FileKey:
    header = read_header(path)
    root = master.root(header.format, header.file_id)
    if root:
        key = file_key(root, NAMESPACE, format=header.format, file_id=header.file_id)
        if hmac.compare_digest(key.header.check, header.check):
            if master.doubt:  # an earlier version took it as a passphrase
                log.warning("%s is under this passphrase, but: %s", path, master.doubt.what)
            return key
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
