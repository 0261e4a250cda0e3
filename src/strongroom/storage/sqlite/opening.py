"""What the file of a store has to pass before it is used."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import apsw

from strongroom.disk import database
from strongroom.disk.directory import log_of
from strongroom.disk.remedies import put_back
from strongroom.disk.wal import NO_FRAMES
from strongroom.errors import FormatUnsupported, StoreDamaged, StoreRolledBack
from strongroom.keys.derive import FileKey
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.files import StoreFiles


class Opened(NamedTuple):
    """A store whose file and log are as they should be, as far as a start can tell."""

    connection: apsw.Connection
    key: FileKey | None
    head: tables.StoreHead
    is_marked: bool
    """Whether `__node_meta` remembers everything in it."""


def open_store(files: StoreFiles, namespace: str, path: Path) -> Opened:
    """Open the file of a namespace at `path`, or a copy of it. Blocks; nobody may have it open.

    Raises:
        StoreError: The file, or its log, is not as it should be. Nothing was changed.
    """
    key = files.unlock(namespace)
    file_id = key.header.file_id if key else files.keystore.entries[namespace].key.file_id
    committed = files.commits.of(file_id)
    if committed:
        _check_base(path, key, namespace, committed.base)
    connection = database.open_existing(
        path, key, acknowledged=committed.end if committed else NO_FRAMES
    )
    try:
        if (found := tables.version(connection)) != tables.VERSION:
            raise FormatUnsupported(
                f"{path} has tables of version {found}, and this Strongroom knows "
                f"version {tables.VERSION}.",
                remedy="a newer Strongroom",
                path=path,
                namespace=namespace,
            )
        head = tables.head(connection)
        is_marked = files.verify(namespace, head, committed.revision if committed else 0)
        if committed or has_log(path):
            _check_newest(connection, path, namespace, files.marked(namespace))
    except apsw.Error as error:
        connection.close()
        raise database.explain(error, path, namespace) from error
    except BaseException:
        connection.close()
        raise
    return Opened(connection, key, head, is_marked)


def has_log(path: Path) -> bool:
    """Whether a process was killed while it had the database open for writing."""
    log = log_of(path)
    return log.exists() and log.stat().st_size > 0


def _check_base(path: Path, key: FileKey | None, namespace: str, base: int) -> None:
    """Raise StoreRolledBack if the database is older than its log.

    The log begins where the database had all of `base`. What a crash left in the middle of a
    checkpoint may be torn when it is read alone; the log repairs it.
    """
    if not path.exists():
        return
    try:
        with contextlib.closing(database.open_without_log(path, key)) as alone:
            found = tables.head(alone).revision
            is_older = found < base and not tables.problems(alone)
    except Exception:  # noqa: BLE001  # a torn page of a plain file may read as anything
        return
    if is_older:
        raise StoreRolledBack(
            f"{path} is an older copy than its log: it is at revision {found}, and the log "
            f"continues from revision {base}. Nothing was changed.",
            remedy=put_back(path),
            path=path,
            namespace=namespace,
        )


def _check_newest(connection: apsw.Connection, path: Path, namespace: str, marked: int) -> None:
    """Check what was written after the last watermark; a check of all takes longer."""
    if lost := tables.unreachable(connection, after=marked):
        raise StoreDamaged(
            f"{path} is damaged: {lost} of its newest records do not match its indexes.",
            remedy=put_back(path),
            path=path,
            namespace=namespace,
        )
