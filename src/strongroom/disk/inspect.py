"""Looks at what is in a data directory before anything opens it.

Something else than a plain file of ours, under a name that a node opens, could make it wait for
ever (a FIFO), write into a file elsewhere (a link), or take what it never wrote (a journal).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from strongroom.disk.directory import (
    CHANGES,
    COMMITS,
    JOURNAL_SUFFIX,
    LOG_SUFFIX,
    SHARED_MEMORY_SUFFIX,
)
from strongroom.errors import DirectoryError, StoreUnavailable

SPARSE = 100
"""A file that claims so many times the space that it occupies was not written by a node."""

_OURS = re.compile(
    rf".*\.db({LOG_SUFFIX}|{SHARED_MEMORY_SUFFIX}|{JOURNAL_SUFFIX})?|\..*\.db\..*\.new.*|{COMMITS}|{CHANGES}"
)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def is_directory(path: Path) -> bool:
    """Whether there is a directory at `path`; False if there is nothing.

    Raises:
        DirectoryError: Something else is there, or this user may not look.
    """
    try:
        info = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise _unusable(path, "is a link to nothing") from None
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _unusable(path, f"cannot be used: {reason}") from None
    if not stat.S_ISDIR(info.st_mode):
        raise _unusable(path, "is a file, and not a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise _unusable(path, f"belongs to user {info.st_uid}, and this user may not read it")
    return True


def check_directory(path: Path) -> None:
    """Raise DirectoryError unless the directory is ours, and only we can write to it.

    Root may work on a directory of any user.
    """
    info = path.stat()
    if os.geteuid() not in {0, info.st_uid}:
        raise DirectoryError(
            f"{path} belongs to user {info.st_uid}, and this process is of user {os.geteuid()}.",
            remedy=f"run it as user {info.st_uid}, or chown -R {os.geteuid()} {path}",
            path=path,
        )
    if info.st_mode & 0o022:
        raise DirectoryError(
            f"Others than its owner can write to {path} (mode {info.st_mode & 0o777:o}), and so "
            "put files in the place of the node's.",
            remedy=f"chmod 700 {path}, or a directory of its own below it",
            path=path,
        )


def our_files(directory: Path) -> Iterator[Path]:
    """What is in a data directory under the names of a node's files."""
    return (path for path in sorted(directory.iterdir()) if _OURS.fullmatch(path.name))


def check_files(directory: Path) -> None:
    """Raise DirectoryError for anything that a node did not put under the names of its files."""
    owners = {directory.stat().st_uid, os.geteuid()}
    for path in our_files(directory):
        _check_file(path, owners)


def check_database(path: Path) -> None:
    """Raise DirectoryError if a database, or a file beside it, is not one that a node made."""
    owners = {path.parent.stat().st_uid, os.geteuid()}
    for suffix in ("", LOG_SUFFIX, SHARED_MEMORY_SUFFIX, JOURNAL_SUFFIX):
        _check_file(path.with_name(path.name + suffix), owners)


def _check_file(path: Path, owners: set[int]) -> None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "a device")
        raise _stranger(path, f"is {kind}, and not a file")
    if info.st_uid not in owners:
        owner = path.parent.stat().st_uid
        raise DirectoryError(
            f"{path} belongs to user {info.st_uid}, and its directory to user {owner}.",
            remedy=f"chown {owner} {path}, as root",
            path=path,
        )
    if path.name.endswith(JOURNAL_SUFFIX) and not path.name.startswith("."):
        raise _stranger(path, "is a rollback journal, which would be played back; no node has one")
    if path.name.endswith((LOG_SUFFIX, SHARED_MEMORY_SUFFIX, COMMITS)) and info.st_nlink > 1:
        # A database may have more links: backups are made so, and a header says whose it is.
        raise DirectoryError(
            f"{path} has another name elsewhere (a hard link), and would be emptied there too.",
            remedy=f"cp -p {path} {path}.copy && mv {path}.copy {path}",
            path=path,
        )
    if info.st_size > SPARSE * max(info.st_blocks * 512, 1024 * 1024):
        raise _stranger(path, f"claims {info.st_size:,} bytes, and has {info.st_blocks * 512:,}")


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, without following a link or waiting for the writer of a FIFO.

    Raises:
        StoreUnavailable: It cannot be read.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise StoreUnavailable(
            f"{path} cannot be read: {error.strerror}.",
            remedy="check the owner and mode of the file",
            path=path,
        ) from None


def _unusable(path: Path, how: str) -> DirectoryError:
    return DirectoryError(
        f"{path} {how}.",
        remedy="another directory in FAME_STORAGE_DB_DIRECTORY, or the same as its owner",
        path=path,
    )


def _stranger(path: Path, how: str) -> DirectoryError:
    return DirectoryError(
        f"{path} {how}. Nothing was changed.",
        remedy="find out who put it there, and move it away",
        path=path,
    )
