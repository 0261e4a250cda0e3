"""A new data key for a store that is in use: its file is copied, and the copy takes its place.

The keystore knows both keys before the copy begins, and the id in a file's header tells which of
them opens it: whenever the node is killed, exactly one file stands there, and it opens. The copy
goes through the writing connection in steps between commits; what is written meanwhile reaches it
by itself (https://sqlite.org/c3ref/backup_finish.html). A copy that was cut short starts again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw

from strongroom.disk import database
from strongroom.disk.directory import (
    remove_with_journals,
    replace_database,
    sync_file,
    temporary_beside,
)
from strongroom.errors import InvalidNamespace, StoreUnavailable
from strongroom.keys.keystore import DataKey, Keystore, RetiredKey, State
from strongroom.keys.master import MasterKey

STEP_PAGES = 256

Progress = Callable[[str, int, int], None]
"""Called with a namespace, and how many of its pages are done, of how many."""


def change_master(keystore: Keystore, master: MasterKey, now: int) -> None:
    """Put the keystore under another master key."""
    with keystore.change(master) as contents:
        contents.trail.add(now, "master key changed")


def begin(keystore: Keystore, namespaces: Sequence[str] | None, now: int) -> list[str]:
    """Give next keys to namespaces; returns those that are to be copied.

    Args:
        keystore: Where both keys stand from now on.
        namespaces: Which; None for those that an earlier rotation left behind, else for all.
        now: The time.

    Raises:
        InvalidNamespace: There is no such namespace.
    """
    states = {name: entry.state for name, entry in keystore.entries.items()}
    left = [name for name, state in states.items() if state is State.ROTATING]
    if namespaces is None:
        chosen = left or [name for name, state in states.items() if state is State.LIVE]
    else:
        chosen = list(dict.fromkeys(namespaces))
    if unknown := [name for name in chosen if states.get(name, State.NEW) is State.NEW]:
        raise InvalidNamespace(
            f"There is no namespace {unknown[0]!r}.", remedy="strongroom store ls"
        )
    with keystore.change() as contents:
        for name in set(chosen).difference(left):
            contents.entries[name].state = State.ROTATING
            contents.entries[name].next_key = keystore.new_data_key(now)
        contents.trail.add(now, "rotation began", detail=f"{len(chosen)} namespaces")
    return sorted(chosen)


def finish(keystore: Keystore, namespace: str, now: int) -> None:
    """The file is under the new key: let that one count, and retire the old one."""
    with keystore.change() as contents:
        entry = contents.entries[namespace]
        assert entry.next_key is not None
        contents.retired.append(RetiredKey(namespace, entry.key, now))
        contents.trail.add(now, "data key rotated", namespace, f"{entry.key.id} is retired")
        entry.state, entry.key, entry.next_key = State.LIVE, entry.next_key, None


class Copy:
    """A copy of a store's file under another key, made on the writing connection."""

    def __init__(self, path: Path, namespace: str, key: DataKey) -> None:
        """Begin an empty file beside `path`."""
        self._path = path
        self._key = key
        self._temporary = temporary_beside(path)
        self._target = database.open_empty(self._temporary, key.opens(namespace))
        self._source: apsw.Connection | None = None
        self._backup: apsw.Backup | None = None
        self._old: int | None = None
        self._step_pages = STEP_PAGES
        self._turn = threading.Lock()

    def step(self, source: apsw.Connection) -> tuple[int, int]:
        """Copy some pages, never the last; returns how many are done, of how many.

        A copy that has reached its end takes in nothing more, so the last pages are for `complete`.
        """
        with self._turn:
            if self._backup is None:
                self._source, self._backup = source, self._target.backup("main", source, "main")
                self._backup.step(0)
            if source is not self._source:
                raise StoreUnavailable(
                    f"{self._path} was opened anew during the rotation.",
                    remedy="rotate again",
                    path=self._path,
                )
            left = self._backup.remaining
            if left > 1:
                self._backup.step(min(self._step_pages, left - 1))
            if self._backup.remaining >= left:  # the writers are faster
                self._step_pages *= 2
            return self._backup.page_count - self._backup.remaining, self._backup.page_count

    def sync(self) -> None:
        """Make durable what is copied so far, so that `complete` takes little time."""
        sync_file(self._temporary)

    def complete(self, source: apsw.Connection) -> None:
        """Copy what is left, and make the copy durable; nothing may be written after this."""
        self.step(source)
        assert self._backup is not None
        self._backup.step(-1)
        self._backup.finish()
        self._target.execute("UPDATE head SET file_id = ?", (self._key.file_id,))
        self._target.close()
        self.sync()

    def take_place(self) -> None:
        """Replace the store's file, which nobody has open.

        The old file stays open until `free`: the disk takes long to free it, and the store waits.
        """
        self._old = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        replace_database(self._path, self._temporary)

    def free(self) -> None:
        """Let the disk have the old file's blocks."""
        if self._old is not None:
            os.close(self._old)
            self._old = None

    def discard(self, _source: apsw.Connection | None = None) -> None:
        """Let go of what is left of the copy. On the writing connection, while that is open."""
        with self._turn:
            if self._backup is not None:
                self._backup.close(True)
            self._target.close()
            remove_with_journals(self._temporary)
