"""What the stores of a directory have committed, in a file beside them that is written unsynced.

A commit is noted there before its callers learn of it. What was noted survives the kill of a
process, so that the next start notices a log that was shortened, replaced or removed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

from strongroom.disk.directory import (
    COMMITS,
    SHARED_MEMORY_SUFFIX,
    give,
    log_of,
    sync_file,
    writing,
)
from strongroom.disk.inspect import open_file
from strongroom.disk.wal import NO_FRAMES, LogEnd, read_end

_SLOT = struct.Struct(">8sQQI16s")
_CRC = struct.Struct(">I")  # of the slot before it
_HEADER = struct.Struct("=16xI4x2I8s8x")
_SLOT_SIZE = 64  # no slot lies across two sectors


class Committed(NamedTuple):
    """How far a store had come: its newest revision, and where in its log that commit ended."""

    revision: int
    base: int
    """The revision up to which the database holds everything without its log."""
    end: LogEnd = NO_FRAMES
    """The end of the log then; `NO_FRAMES` if the database needs none of it."""


class Commits:
    """The file `__commits`: a slot for each open store, by file id.

    Every call may come from any thread, and raises OSError if the disk refuses.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / COMMITS
        self.existed = False
        """Whether `load` found the file."""
        self._turn = threading.Lock()
        self._descriptor = -1
        self._slots: dict[bytes, int] = {}
        self._known: dict[bytes, Committed] = {}
        self._free: list[int] = []
        self._end = 0

    def load(self) -> None:
        """Read the file, if there is one."""
        data = b""
        self.existed = os.path.lexists(self.path)
        if self.existed:
            with open_file(self.path) as file:
                data = file.read()
        self._end = len(data) // _SLOT_SIZE
        for slot in range(self._end):
            self._read(slot, data[slot * _SLOT_SIZE : (slot + 1) * _SLOT_SIZE])

    def _read(self, slot: int, data: bytes) -> None:
        file_id, revision, base, frames, seal = _SLOT.unpack_from(data)
        if _CRC.unpack_from(data, _SLOT.size) == (zlib.crc32(data[: _SLOT.size]),):
            self._slots[file_id] = slot
            self._known[file_id] = Committed(revision, base, LogEnd(frames, seal))
        else:
            self._free.append(slot)

    def open(self) -> None:
        """Prepare for `note`, after `load`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with writing(self.path):
            self._descriptor = os.open(self.path, flags, 0o600)
            give(self._descriptor, self.path.parent.stat())

    def close(self, *, is_awaited: bool) -> None:
        """Close the file, and delete it unless a store needs it or the next start awaits it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._slots and not is_awaited:
                with contextlib.suppress(OSError):  # it holds nothing, and the next start uses it
                    self.path.unlink(missing_ok=True)

    def of(self, file_id: bytes) -> Committed | None:
        """What was noted of a file; None if it was closed since, or never written."""
        return self._known.get(file_id)

    def note(self, file_id: bytes, committed: Committed) -> None:
        """Note a commit. It is not synced, and takes a few microseconds."""
        slot = self._slots.get(file_id)
        if slot is None:
            with self._turn:
                slot = self._slots[file_id] = self._free.pop() if self._free else self._end
                self._end = max(self._end, slot + 1)
        self._known[file_id] = committed
        data = _SLOT.pack(file_id, committed.revision, committed.base, *committed.end)
        self._write(slot, data + _CRC.pack(zlib.crc32(data)))

    def forget(self, file_id: bytes) -> None:
        """Forget a file: it needs no log now, or is gone."""
        with self._turn:
            slot = self._slots.pop(file_id, None)
            self._known.pop(file_id, None)
            if slot is not None:
                self._write(slot, b"")
                self._free.append(slot)

    def sync(self) -> None:
        """Make what was noted durable."""
        sync_file(self.path)

    def _write(self, slot: int, data: bytes) -> None:
        os.pwrite(self._descriptor, data.ljust(_SLOT_SIZE, b"\0"), slot * _SLOT_SIZE)


class Guard:
    """Tells whether the files of an open store are as its writer left them, and notes its commits.

    It never asks the log for its times: Linux would then update them with each write. Instead it
    reads the header that SQLite keeps in the shared memory (https://sqlite.org/walformat.html, 2.1)
    and the last frame, which only a commit changes. Its methods are for the writer's thread.
    """

    def __init__(self, path: Path, file_id: bytes, commits: Commits, revision: int) -> None:
        """Watch a store that was just opened, at `revision`."""
        self._path, self._directory = str(path), str(path.parent)
        self._log = _Watched(log_of(path))
        self._memory = _Watched(path.with_name(path.name + SHARED_MEMORY_SUFFIX))
        self._file_id = file_id
        self._commits = commits
        self._header = self._read_header()
        self._end = _end_in(self._header)
        known = commits.of(file_id)
        self._base = known.base if known else 0 if self._end.frames else revision
        self._names = 0
        self._seen: tuple[int, ...] = ()
        self.look()

    def is_untouched(self) -> bool:
        """Whether nobody else has removed, replaced, shortened or written the files."""
        try:
            return (
                self._look() == self._seen
                and self._has_its_files()
                and self._read_header() == self._header
                and read_end(self._log.descriptor, self._end.frames) == self._end
            )
        except OSError:
            return False

    def look(self) -> None:
        """Remember how the database looks now, which the writer itself has just changed."""
        with contextlib.suppress(OSError):
            self._seen = self._look()

    def on_commit(self, revision: int) -> None:
        """Note a commit, before its callers learn of it."""
        header = self._read_header()
        if header != self._header:
            self._header, self._end = header, _end_in(header)
            self._commits.note(self._file_id, Committed(revision, self._base, self._end))

    def on_checkpoint(self, revision: int) -> None:
        """Note, durably, that the database holds everything up to `revision` without its log.

        It has to be durable before the next commit begins the log anew.
        """
        if (self._base, self._end) != (revision, NO_FRAMES):
            self._base, self._end = revision, NO_FRAMES
            self._commits.note(self._file_id, Committed(revision, revision))
            self._commits.sync()

    def on_removal(self) -> None:
        """Note that the log was removed after a checkpoint."""
        self._commits.forget(self._file_id)

    def close(self) -> None:
        """Close the descriptors, after SQLite's: closing one drops locks of this process."""
        self._log.close()
        self._memory.close()

    def _look(self) -> tuple[int, ...]:
        found = os.stat(self._path)  # noqa: PTH116  # called before each commit, and Path is slower
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _has_its_files(self) -> bool:
        """Whether log and shared memory are those at their paths; asked if any name has changed."""
        names = os.stat(self._directory).st_mtime_ns  # noqa: PTH116
        if names != self._names:
            if not (self._log.is_in_place() and self._memory.is_in_place()):
                return False
            self._names = names
        return True

    def _read_header(self) -> bytes:
        return os.pread(self._memory.descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0")


class _Watched:
    """A file that stays open, to be compared with the one at its path."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._path = path

    def is_in_place(self) -> bool:
        return os.path.samestat(self._path.stat(), os.fstat(self.descriptor))

    def close(self) -> None:
        os.close(self.descriptor)


def _end_in(header: bytes) -> LogEnd:
    """The end of the log, as the header in the shared memory has it in the machine's byte order."""
    frames, sum_1, sum_2, salts = _HEADER.unpack(header)
    return LogEnd(frames, salts + struct.pack(">2I", sum_1, sum_2)) if frames else NO_FRAMES
