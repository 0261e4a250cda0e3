"""Checks a write-ahead log that a crash left, before SQLite may change anything.

SQLite's recovery ends at the first invalid frame. It drops this frame and all that follow, without
an error. That is right after a torn last write, whose transaction was never acknowledged. But after
damage further up it loses acknowledged transactions. A transaction starts only after the fsync of
the one before, so the commit of a later transaction after the first invalid frame proves damage.
So does a log that lacks what was noted of the last commit (`commits.py`).
The format is described in https://sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import apsw

from strongroom.disk.directory import log_of
from strongroom.disk.header import PAGE_SIZE
from strongroom.disk.inspect import open_file
from strongroom.disk.remedies import put_back
from strongroom.errors import StoreDamaged

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_FRAME_SIZE = _FRAME.size + PAGE_SIZE
_MAGIC = 0x377F0682  # its lowest bit is the byte order of the checksums
_VERSION = 3007000


class LogEnd(NamedTuple):
    """Where a commit ends in a log."""

    frames: int
    seal: bytes
    """Salts and checksum of the last frame. SQLite computes it over all frames up to there."""


NO_FRAMES = LogEnd(0, bytes(16))


def read_end(log: int, frames: int) -> LogEnd:
    """The end of a log after a number of frames. `log` is a descriptor."""
    if not frames:
        return NO_FRAMES
    offset = _HEADER.size + (frames - 1) * _FRAME_SIZE
    return LogEnd(frames, os.pread(log, _FRAME.size, offset)[8:])


def check(path: Path, connect: Callable[[], apsw.Connection], acknowledged: LogEnd) -> None:
    """Raise StoreDamaged if the log beside `path` lacks commits, or SQLite would drop some.

    Args:
        path: The database.
        connect: Opens the database. The check changes no byte, and leaves no file.
        acknowledged: The end of the last commit that is known to have been acknowledged.
    """
    log = log_of(path)
    if not log.exists() or log.stat().st_size < _HEADER.size + _FRAME_SIZE:
        if acknowledged.frames:
            raise _damaged(log, "what was acknowledged last is missing from it")
        return
    with open_file(log) as file:
        salts = _salts(file.read(_HEADER.size))
        if salts is None:
            raise _damaged(log, "its header is not valid, and frames follow it")
        if acknowledged.frames and read_end(file.fileno(), acknowledged.frames) != acknowledged:
            raise _damaged(log, "it does not contain what was acknowledged last")
        recovered = _recovered_frames(connect)
        if recovered < acknowledged.frames or _later_commit(file, recovered, salts):
            raise _damaged(log, f"frame {recovered + 1} is not valid, and later commits follow it")


def _salts(head: bytes) -> tuple[int, int] | None:
    magic, version, page_size, _, salt_1, salt_2, sum_1, sum_2 = _HEADER.unpack(head)
    order = ">" if magic & 1 else "<"
    if (magic & ~1, version, page_size) != (_MAGIC, _VERSION, PAGE_SIZE):
        return None
    return (salt_1, salt_2) if _checksum(head[:24], order) == (sum_1, sum_2) else None


def _recovered_frames(connect: Callable[[], apsw.Connection]) -> int:
    """The number of frames that SQLite recovers, up to the last valid commit."""
    connection = connect()
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()  # needs no -shm file
        frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        return frames
    finally:
        connection.close()


def _later_commit(file: BinaryIO, recovered: int, salts: tuple[int, int]) -> bool:
    """Whether two transactions end after the last valid commit: the first was acknowledged.

    A frame belongs to this log if one of its two salts is right, since a changed byte spoils one.
    """
    commits = 0
    for size_after_commit, salt_1, salt_2 in _frames(file, recovered):
        if size_after_commit and (salt_1 == salts[0] or salt_2 == salts[1]):
            commits += 1
    return commits > 1


def _frames(file: BinaryIO, first: int) -> Iterator[tuple[int, int, int]]:
    offset = _HEADER.size + first * _FRAME_SIZE
    while True:
        file.seek(offset)
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return
        _, size_after_commit, salt_1, salt_2, _, _ = _FRAME.unpack(head)
        yield size_after_commit, salt_1, salt_2
        offset += _FRAME_SIZE


def _checksum(data: bytes, order: str) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    one = two = 0
    for left, right in zip(words[::2], words[1::2], strict=True):
        one = (one + left + two) & 0xFFFFFFFF
        two = (two + right + one) & 0xFFFFFFFF
    return one, two


def _damaged(log: Path, how: str) -> StoreDamaged:
    return StoreDamaged(
        f"{log} is damaged: {how}. Nothing was written.",
        remedy=put_back(log),
        path=log,
    )
