"""A new data key for a store that is in use: its file is copied, and the copy takes its place.

The keystore has both keys before the copy begins, and the id in a file's header says which of them
opens it: whenever the node is killed, there is exactly one file, and it opens. The copy is made on
the writing connection, in steps between commits; SQLite applies what is written meanwhile to it
(https://sqlite.org/c3ref/backup_finish.html). A copy that was interrupted starts again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import apsw

from strongroom.disk import database
from strongroom.disk.directory import (
    remove_with_journals,
    replace_database,
    sync_file,
    temporary_beside,
)
from strongroom.errors import StoreUnavailable
from strongroom.keys.keystore import DataKey

STEP_PAGES = 256


class RekeyedCopy:
    """A copy of a store's file under another key, made on the writing connection."""

    def __init__(self, path: Path, namespace: str, key: DataKey) -> None:
        """Create an empty file beside `path`."""
        self._path = path
        self._key = key
        self._temporary = temporary_beside(path)
        self._target = database.open_empty(self._temporary, key.file_key(namespace))
        self._source: apsw.Connection | None = None
        self._backup: apsw.Backup | None = None
        self._old: int | None = None
        self._step_pages = STEP_PAGES
        self._turn = threading.Lock()

    def step(self, source: apsw.Connection) -> tuple[int, int]:
        """Copy some pages, never the last; returns how many are done and how many there are.

        Once SQLite has copied the last page it applies no more writes to the copy, so the last
        pages are left to `complete`.
        """
        with self._turn:
            if self._backup is None:
                self._source, self._backup = source, self._target.backup("main", source, "main")
                self._backup.step(0)
            if source is not self._source:
                raise StoreUnavailable(
                    f"{self._path} was opened again during the rotation.",
                    remedy="rotate again",
                    path=self._path,
                )
            left = self._backup.remaining
            if left > 1:
                self._backup.step(min(self._step_pages, left - 1))
            if self._backup.remaining >= left:  # writers add pages faster than they are copied
                self._step_pages *= 2
            return self._backup.page_count - self._backup.remaining, self._backup.page_count

    def sync(self) -> None:
        """Make durable what was copied so far, so that `complete` takes little time."""
        sync_file(self._temporary)

    def complete(self, source: apsw.Connection) -> None:
        """Copy the rest, and make the copy durable; nothing may be written after this."""
        self.step(source)
        assert self._backup is not None
        self._backup.step(-1)
        self._backup.finish()
        self._target.execute("UPDATE head SET file_id = ?", (self._key.file_id,))
        self._target.close()
        self.sync()

    def take_place(self) -> None:
        """Replace the store's file, which nobody has open.

        The old file stays open until `free`: freeing its blocks takes long, and the store waits.
        """
        self._old = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        replace_database(self._path, self._temporary)

    def free(self) -> None:
        """Give the old file's blocks back to the disk."""
        if self._old is not None:
            os.close(self._old)
            self._old = None

    def discard(self, _source: apsw.Connection | None = None) -> None:
        """Delete what is left of the copy. On the writing connection, while that is open."""
        with self._turn:
            if self._backup is not None:
                self._backup.close(True)
            self._target.close()
            remove_with_journals(self._temporary)
