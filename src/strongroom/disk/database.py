"""Creates and opens a SQLite file, encrypted or plain, with every guard in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import apsw

from strongroom.disk import header, wal
from strongroom.disk.directory import write_whole
from strongroom.disk.remedies import put_back
from strongroom.errors import (
    EngineUnsuitable,
    StorageError,
    StoreDamaged,
    StoreMissing,
    StoreUnavailable,
)
from strongroom.keys.derive import FileKey

CIPHER = "chacha20"  # ChaCha20-Poly1305 page by page; it covers the readable header too
CACHE_KIB = 16 * 1024
ENGINE: str | None = getattr(apsw, "mc_version", None)
NONCE_SAFE_VERSION = (3, 54)  # earlier releases repeat page nonces after a fork

_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = 1",  # macOS: without these an fsync does not reach the disk
    "PRAGMA checkpoint_fullfsync = 1",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA secure_delete = ON",
    f"PRAGMA cache_size = -{CACHE_KIB}",
    "PRAGMA trusted_schema = OFF",
)


def check_engine() -> None:
    """Raise EngineUnsuitable unless SQLite can encrypt as the file format needs, and bind arrays.

    The plain `apsw` package installs a module of the same name, and a plain SQLite ignores
    `PRAGMA key` without an error, so this is checked before the first file is written.
    """
    remedy = "pip uninstall apsw; pip install --force-reinstall apsw-sqlite3mc"
    if ENGINE is None:
        raise EngineUnsuitable("The installed apsw has no encryption.", remedy=remedy)
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split(".")[:2])
    if version < NONCE_SAFE_VERSION:
        raise EngineUnsuitable(
            f"SQLite {apsw.sqlite_lib_version()} with {ENGINE} repeats nonces after a "
            f"fork; 3.54 or newer is needed.",
            remedy=remedy,
        )
    if "ENABLE_CARRAY" not in apsw.compile_options:
        raise EngineUnsuitable("The installed apsw cannot bind arrays.", remedy=remedy)
    connection = apsw.Connection(":memory:")
    try:
        if connection.execute(f"PRAGMA cipher = '{CIPHER}'").get != CIPHER:
            raise EngineUnsuitable(f"{ENGINE} lacks the cipher {CIPHER}.", remedy=remedy)
    finally:
        connection.close()


def create(
    path: Path,
    key: FileKey | None,
    fill: Callable[[apsw.Connection], object],
    *,
    replace: bool = False,
    write_ahead: bool = True,
) -> None:
    """Create a database that appears at `path` complete and durable, or not at all.

    Args:
        path: Where the file will be.
        key: Its key; None creates a plain file.
        fill: Writes the first contents.
        replace: Whether to replace a file at `path`; otherwise it is an error.
        write_ahead: Whether the file will be used with a write-ahead log.
    """

    def write(temporary: Path) -> None:
        connection = _connect(temporary, key, read_only=False)
        try:
            connection.execute(f"PRAGMA page_size = {header.PAGE_SIZE}")
            mode = "WAL" if write_ahead else "DELETE"
            connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
            with connection:
                fill(connection)
        finally:
            connection.close()
        if key and temporary.read_bytes()[: header.SALT_SIZE] != key.header.to_bytes():
            raise EngineUnsuitable(f"{ENGINE} did not encrypt {path}; nothing was kept.")

    try:
        write_whole(path, write, replace=replace)
    except apsw.Error as error:
        raise explain(error, path) from error


def open_empty(path: Path, key: FileKey | None) -> apsw.Connection:
    """Open an empty file for a copy, which is used only when it is complete and synced."""
    connection = _connect(path, key, read_only=False)
    for pragma in (f"page_size = {header.PAGE_SIZE}", "journal_mode = OFF", "synchronous = OFF"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def open_existing(
    path: Path,
    key: FileKey | None,
    *,
    read_only: bool = False,
    check_log: bool = True,
    acknowledged: wal.LogEnd = wal.NO_FRAMES,
) -> apsw.Connection:
    """Open an existing database, after checking the write-ahead log that a crash may have left.

    The caller has compared the file's header with `key`. SQLite never gets its create flag, since
    with it an empty file would open as a new, empty store. `acknowledged` is what the log has to
    contain, if that is known.

    Raises:
        StoreMissing: There is no such file.
        StoreDamaged: The first page, or the log, has bytes that were never valid.
        StoreUnavailable: The disk refused.
    """
    if not path.exists():
        raise StoreMissing(f"{path} is not there.", remedy=put_back(path), path=path)
    try:
        if check_log:
            wal.check(path, lambda: _connect(path, key, read_only=False), acknowledged)
        connection = _connect(path, key, read_only=read_only)
        try:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchall()  # decrypts the first page
        except apsw.Error:
            connection.close()
            raise
    except apsw.Error as error:
        raise explain(error, path) from error
    return connection


def open_without_log(path: Path, key: FileKey | None) -> apsw.Connection:
    """Open a database for reading as if it had no log. Nobody may write it meanwhile."""
    return _connect(f"file:{quote(str(path))}?immutable=1", key, read_only=True)


def explain(error: apsw.Error, path: Path, namespace: str | None = None) -> StorageError:
    """The StorageError for an error of SQLite."""
    if isinstance(error, apsw.NotADBError | apsw.CorruptError | apsw.FormatError):
        return StoreDamaged(
            f"{path} is damaged: {error}. Nothing was written.",
            remedy=put_back(path),
            path=path,
            namespace=namespace,
        )
    if isinstance(error, apsw.FullError):
        reason, remedy = "the disk is full", "free some space; the store then works again"
    elif isinstance(error, apsw.ReadOnlyError):
        reason, remedy = "it may not be written", "check the owner and mode of file and directory"
    elif isinstance(error, apsw.CantOpenError) and not _may_open_files():
        reason, remedy = "the process has too many open files", "raise its limit: ulimit -n 65536"
    else:
        reason, remedy = str(error), "check the disk and the system's log"
    return StoreUnavailable(f"{path}: {reason}.", remedy=remedy, path=path, namespace=namespace)


def _may_open_files() -> bool:
    """Whether this process may open one more file; SQLite does not say why it could not."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _connect(path: Path | str, key: FileKey | None, *, read_only: bool) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    connection = apsw.Connection(
        str(path), flags=flags | apsw.SQLITE_OPEN_URI, statementcachesize=64
    )
    try:
        if key is not None:
            connection.execute(f"PRAGMA cipher = '{CIPHER}'", can_cache=False).fetchall()
            if connection.execute(key.pragma, can_cache=False).get != "ok":
                raise EngineUnsuitable(f"{ENGINE} refused the key of {path}.")
        for pragma in _PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection
