"""A data directory: its owner, its filesystem, and files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from strongroom.errors import DirectoryInUse, FilesystemUnsafe, StoreUnavailable

NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "smb3", "smbfs", "virtiofs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"}
)
_TEMPORARY = ".new"

LOG_SUFFIX = "-wal"
SHARED_MEMORY_SUFFIX = "-shm"
JOURNAL_SUFFIX = "-journal"
CHANGES = "__keystore_changes"
"""The file in which `changes.py` keeps the changes of the keystore."""
COMMITS = "__commits"
"""The file in which `commits.py` notes what was committed."""


def log_of(path: Path) -> Path:
    """Where SQLite keeps the write-ahead log of a database."""
    return path.with_name(path.name + LOG_SUFFIX)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into StoreUnavailable."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> StoreUnavailable:
    """The error for a file that the disk refuses to write."""
    return StoreUnavailable(
        f"{path} cannot be written: {error.strerror or error}.",
        remedy="check that the disk has space and that the directory is writable",
        path=path,
    )


def make_directory(path: Path) -> None:
    """Create `path` and its missing parents, mode 0700, each durable in its parent."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    with writing(path):
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)


def check_filesystem(path: Path) -> None:
    """Raise FilesystemUnsafe when `path` is on a network filesystem.

    Write-ahead logging needs shared memory and reliable locks; a network filesystem has neither
    (https://sqlite.org/wal.html).
    """
    kind = filesystem(path)
    if kind in NETWORK_FILESYSTEMS:
        raise FilesystemUnsafe(
            f"{path} is on a network filesystem ({kind}), where locks and syncs cannot be "
            "relied on.",
            remedy="a directory on a local disk",
            path=path,
        )


def filesystem(path: Path) -> str | None:
    """The type of the filesystem of `path`, as Linux names it; None on other systems."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return None
    best: tuple[int, str | None] = (-1, None)
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        fields, _, source = line.partition(" - ")
        mounted_on = fields.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape")
        if path.resolve().is_relative_to(mounted_on) and len(mounted_on) >= best[0]:
            best = len(mounted_on), source.split(" ")[0]
    return best[1]


class DirectoryLock:
    """The lock by which one process owns a data directory, until `release`."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            DirectoryInUse: Another process, or another provider in this one, holds it.
        """
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            whose = "this process already" if is_held_here(path) else "another process"
            raise DirectoryInUse(
                f"{path} is in use by {whose}.",
                remedy=(
                    "stop the other node, or give this one its own directory in "
                    "FAME_STORAGE_DB_DIRECTORY"
                ),
                path=path,
            ) from None
        _held.add(self)

    def is_of(self, path: Path) -> bool:
        """Whether this is the lock of the directory at `path`."""
        return os.path.samestat(os.fstat(self._descriptor), path.stat())

    def release(self) -> None:
        """Release the lock, by closing its last descriptor."""
        _held.discard(self)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def is_held_here(path: Path) -> bool:
    """Whether this process has the lock of a directory."""
    return any(lock.is_of(path) for lock in list(_held))


def _release_in_child() -> None:
    """Otherwise a forked child would hold the lock after its parent has ended."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    with writing(path):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], None], *, replace: bool) -> None:
    """Make `path` appear, durable and complete, or not at all.

    Args:
        path: Where the file will be.
        write: Called with the path of an empty file to fill and close it.
        replace: Whether to replace a file at `path`; otherwise it is an error.

    Raises:
        StoreUnavailable: The disk refused, or there is a file at `path`.
    """
    with writing(path):
        temporary = temporary_beside(path)
        try:
            write(temporary)
            sync_file(temporary)
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike rename, it fails if there is a file
        finally:
            remove_with_journals(temporary)
        sync_directory(path.parent)


def temporary_beside(path: Path) -> Path:
    """A new empty file that will be renamed to `path`, or deleted at the next start.

    It has the owner, group and mode of the file at `path`, so that a command of root leaves a
    directory in which its owner can work. A file that is new has its directory's owner, and mode
    0600.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    with writing(path):
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            old = path.lstat() if os.path.lexists(path) else None
            give(descriptor, old or path.parent.stat())
            if old is not None:
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode) | 0o600)
        finally:
            os.close(descriptor)
    return temporary


def give(descriptor: int, like: os.stat_result) -> None:
    """Give a file the owner and group of another, if this is root's process."""
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, like.st_uid, like.st_gid)


def replace_database(path: Path, new: Path) -> None:
    """Rename the complete and durable file `new` over a database that nobody has open.

    Raises:
        StoreUnavailable: The database has a log. SQLite would apply it to the new file, and destroy
            that.
    """
    for suffix in (LOG_SUFFIX, JOURNAL_SUFFIX):
        log = path.with_name(path.name + suffix)
        if log.exists():
            raise StoreUnavailable(f"{log} is in the way. Try it again.", path=log)
    sync_directory(path.parent)
    with writing(path):
        new.replace(path)
    sync_directory(path.parent)


def remove_with_journals(path: Path) -> None:
    """Delete a database and the files that SQLite may have left beside it."""
    for suffix in (LOG_SUFFIX, SHARED_MEMORY_SUFFIX, JOURNAL_SUFFIX, ""):
        with writing(path):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Delete files that were unfinished when the node was killed. Nothing depends on them."""
    for path in directory.glob(f".*.db.*{_TEMPORARY}*"):
        with writing(path):
            path.unlink(missing_ok=True)
