"""A disk that fails: it records all operations, and can refuse them, or lose what was not synced.

It records each write, sync, rename and deletion in one directory: those of SQLite through its own
VFS below the encryption, the others by patching `os`. From the record it computes what a disk may
contain after a power loss at any moment.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import apsw

from strongroom.disk.directory import JOURNAL_SUFFIX, LOG_SUFFIX, SHARED_MEMORY_SUFFIX

SECTOR = 512
_VFS = "strongroom-recorded"
_ENCRYPTING = f"multipleciphers-{_VFS}"  # SQLite3 Multiple Ciphers adds this one


class Loss(enum.Enum):
    """What happens to operations that were not synced before a power loss."""

    ALL = "all is lost"
    SOME = "some sectors were written, in any order, and the first few changes of names"
    TORN = "all was written but the end of the last write to each file"


class Operation(NamedTuple):
    """One operation on the disk, or a `note` of the test."""

    kind: str
    name: str = ""
    argument: Any = None
    data: bytes = b""


class Disk:
    """Records the operations on the files in one directory.

    >>> disk = Disk(Path("data"))
    >>> with disk.recorded():
    ...     await store.set("a", value)
    ...     disk.note(("a", value))
    >>> for moment in range(len(disk.operations)):
    ...     disk.after_power_loss(moment, Loss.SOME, Random(moment), into=Path(f"lost-{moment}"))

    No open file may be renamed.
    """

    def __init__(self, directory: Path) -> None:
        self.operations: list[Operation] = []
        """All operations so far, in order."""
        self.refuse: Callable[[Operation], int | None] = lambda _: None
        """Called before each operation; returns an `errno` to make it fail, or None."""
        self._directory = directory
        self._before = _read_all(directory)
        self._turn = threading.Lock()

    def note(self, what: object) -> None:
        """Add a note to the record, such as a write that was acknowledged."""
        with self._turn:
            self.operations.append(Operation("note", argument=what))

    def notes(self, moment: int) -> list[Any]:
        """The notes before a moment, which is a number of operations."""
        return [o.argument for o in self.operations[:moment] if o.kind == "note"]

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the files of the directory that are opened within the block."""
        usual, vfs = apsw.vfs_names()[0], _recorded_vfs()
        apsw.set_default_vfs(_ENCRYPTING)
        vfs.disk = self
        try:
            with contextlib.ExitStack() as patches:
                for name, call in _recorded_calls(self).items():
                    patches.enter_context(mock.patch.object(os, name, call))
                yield
        finally:
            vfs.disk = None
            apsw.set_default_vfs(usual)

    def after_power_loss(self, moment: int, loss: Loss, chance: Random, *, into: Path) -> None:
        """Create the directory `into` as this one may be after a power loss at a moment."""
        image = _Image(self._before)
        for operation in self.operations[:moment]:
            image.apply(operation)
        into.mkdir(mode=0o700)
        for name, content in image.after(loss, chance).items():
            (into / name).write_bytes(content)
            (into / name).chmod(0o600)

    def inside(self, path: str | os.PathLike[str]) -> str | None:
        """A file's name in the directory; "" for the directory itself, None for other paths."""
        path = Path(path)
        if path == self._directory:
            return ""
        inside = path.parent == self._directory and not path.name.endswith(SHARED_MEMORY_SUFFIX)
        return path.name if inside else None

    @contextlib.contextmanager
    def recording(self, *operations: Operation) -> Iterator[None]:
        """Record operations after the block has done them, unless they are refused."""
        with self._turn:
            for operation in operations:
                if code := self.refuse(operation):
                    raise OSError(code, os.strerror(code))
            yield
            self.operations.extend(operations)


# --- recording ------------------------------------------------------------------------------------


class _RecordedVFS(apsw.VFS):
    disk: Disk | None = None

    def __init__(self) -> None:
        super().__init__(_VFS, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802  # SQLite's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        inside = self.disk.inside(path) if self.disk and path else None
        if not self.disk or not inside:
            return apsw.VFSFile("unix", name, flags)
        made = [] if Path(path).exists() else [Operation("create", inside)]
        with _refusing_as_sqlite(), self.disk.recording(*made):
            return _RecordedFile(self.disk, inside, name, flags)

    def xDelete(self, path: str, syncdir: bool) -> None:  # noqa: FBT001, N802  # SQLite's form
        inside = self.disk.inside(path) if self.disk else None
        if not self.disk or not inside:
            super().xDelete(path, syncdir)
            return
        operations = [Operation("remove", inside), *([Operation("sync names")] if syncdir else [])]
        with _refusing_as_sqlite(), self.disk.recording(*operations):
            super().xDelete(path, syncdir)


@functools.cache
def _recorded_vfs() -> _RecordedVFS:
    """The one VFS of the process: SQLite3 Multiple Ciphers keeps a reference to it."""
    vfs = _RecordedVFS()
    apsw.Connection(":memory:", vfs=_ENCRYPTING).close()  # registers it under this name
    return vfs


class _RecordedFile(apsw.VFSFile):
    def __init__(self, disk: Disk, inside: str, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._inside = inside
        # When SQLite creates a log, its VFS also syncs the name, with the first sync of the file.
        self._syncs_name = inside.endswith((LOG_SUFFIX, JOURNAL_SUFFIX))
        super().__init__("unix", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        operation = Operation("write", self._inside, offset, bytes(data))
        with _refusing_as_sqlite(), self._disk.recording(operation):
            super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        with _refusing_as_sqlite(), self._disk.recording(Operation("cut", self._inside, size)):
            super().xTruncate(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        operations = [Operation("sync", self._inside)]
        if self._syncs_name:
            operations.append(Operation("sync names"))
        with _refusing_as_sqlite(), self._disk.recording(*operations):
            super().xSync(flags)
        self._syncs_name = False


@contextlib.contextmanager
def _refusing_as_sqlite() -> Iterator[None]:
    """Turn an OSError into the error that SQLite gets from a failing disk."""
    try:
        yield
    except OSError as error:
        kind = apsw.FullError if error.errno == errno.ENOSPC else apsw.IOError
        raise kind(str(error)) from error


def _recorded_calls(disk: Disk) -> dict[str, Callable[..., Any]]:
    """Functions that replace those of `os` that change names or sync, and record."""
    opened: dict[int, str | None] = {}
    usual_open, usual_sync, usual_write = os.open, os.fsync, os.pwrite

    def open_recorded(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        inside = disk.inside(path)
        made = inside and flags & os.O_CREAT and not Path(path).exists()
        with disk.recording(*([Operation("create", inside)] if inside and made else [])):
            descriptor = usual_open(path, flags, mode, **options)
        opened[descriptor] = inside
        return descriptor

    def sync_recorded(descriptor: int) -> None:
        inside = opened.get(descriptor)
        operation = Operation("sync", inside) if inside else Operation("sync names")
        with disk.recording(*([] if inside is None else [operation])):
            usual_sync(descriptor)

    def write_recorded(descriptor: int, data: bytes, offset: int) -> int:
        inside = opened.get(descriptor)
        operation = Operation("write", inside or "", offset, bytes(data))
        with disk.recording(*([operation] if inside else [])):
            return usual_write(descriptor, data, offset)

    def naming(kind: str, call: Callable[..., None]) -> Callable[..., None]:
        def recorded(path: Any, *others: Any, **options: Any) -> None:
            inside = disk.inside(path)
            target = disk.inside(others[0]) if others else None
            with disk.recording(*([Operation(kind, inside, target)] if inside else [])):
                call(path, *others, **options)

        return recorded

    names = {"replace": "rename", "rename": "rename", "link": "link", "unlink": "remove"}
    calls = {call: naming(kind, getattr(os, call)) for call, kind in names.items()}
    return {"open": open_recorded, "fsync": sync_recorded, "pwrite": write_recorded, **calls}


# --- what a disk may hold -------------------------------------------------------------------------


class _Change(NamedTuple):
    """A write to a file that was not synced yet; with `data` None, a truncation to `offset`."""

    offset: int
    data: bytes | None


class _File:
    """A file's content on the disk, and the changes since its last sync."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.pending: list[_Change] = []

    def sync(self) -> None:
        """Apply the changes to the disk."""
        _write(self.content, self.pending)
        self.pending.clear()

    def after(self, loss: Loss, chance: Random) -> bytes:
        content = bytearray(self.content)
        if loss is Loss.TORN and self.pending:
            last = _sectors(self.pending[-1])
            _write(content, [*self.pending[:-1], *last[: chance.randrange(len(last) + 1)]])
        if loss is Loss.SOME:
            pieces = [piece for change in self.pending for piece in _sectors(change)]
            share = chance.random()
            _write(content, [piece for piece in pieces if chance.random() < share])
        return bytes(content)


class _Image:
    """The files by name: as a reader sees them, and as the disk has them, with pending changes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = {name: _File(content) for name, content in files.items()}
        self._synced = dict(self._files)
        self._pending: list[dict[str, _File | None]] = []

    def apply(self, operation: Operation) -> None:
        match operation.kind:
            case "write":
                self._files[operation.name].pending.append(
                    _Change(operation.argument, operation.data)
                )
            case "cut":
                self._files[operation.name].pending.append(_Change(operation.argument, None))
            case "sync":
                self._files[operation.name].sync()
            case "sync names":
                _rename(self._synced, self._pending)
                self._pending.clear()
            case "create":
                self._change({operation.name: _File()})
            case "remove":
                self._change({operation.name: None})
            case "link":
                self._change({operation.argument: self._files[operation.name]})
            case "rename":
                self._change(
                    {operation.argument: self._files[operation.name], operation.name: None}
                )

    def after(self, loss: Loss, chance: Random) -> dict[str, bytes]:
        kept = {Loss.ALL: 0, Loss.TORN: len(self._pending)}
        names = dict(self._synced)
        _rename(names, self._pending[: kept.get(loss, chance.randint(0, len(self._pending)))])
        return {name: file.after(loss, chance) for name, file in names.items()}

    def _change(self, change: dict[str, _File | None]) -> None:
        self._pending.append(change)
        _rename(self._files, [change])


def _rename(files: dict[str, _File], changes: Iterable[dict[str, _File | None]]) -> None:
    for change in changes:
        for name, file in change.items():
            if file is None:
                files.pop(name, None)
            else:
                files[name] = file


def _write(content: bytearray, changes: Iterable[_Change]) -> None:
    for offset, data in changes:
        if data is None:
            del content[offset:]
            continue
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


def _sectors(change: _Change) -> list[_Change]:
    """A write split into sectors, which a disk writes whole."""
    if not change.data:
        return [change]
    start, end = change.offset, change.offset + len(change.data)
    cuts = [start, *range(start - start % SECTOR + SECTOR, end, SECTOR), end]
    return [
        _Change(at, change.data[at - start : to - start]) for at, to in itertools.pairwise(cuts)
    ]


def _read_all(directory: Path) -> dict[str, bytes]:
    if not directory.exists():
        return {}
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.is_file() and not path.name.endswith(SHARED_MEMORY_SUFFIX)
    }
