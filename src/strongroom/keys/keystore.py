"""The keystore: one random data key for each namespace, and the end of the audit log.

Its contents are in memory. Each change is saved whole before it counts, together with its line of
the audit log. Under a plain profile the keystore has the same contents without secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from strongroom.errors import InvalidNamespace
from strongroom.keys.audit import AuditChain, AuditLine, new_audit_chain
from strongroom.keys.derive import RANDOM_KEY, FileKey, file_key, new_file_id
from strongroom.keys.master import MasterKey
from strongroom.threads import finish

NAMESPACE = "__keystore"


class KeyState(Enum):
    """How far the file of a namespace has come."""

    NEW = "new"
    """Being created: the file may not exist yet and holds no data, so creation can be repeated."""
    LIVE = "live"
    ROTATING = "rotating"
    """The file is under `key` or under `next_key`; the file id in its header says which."""


class DataKey(msgspec.Struct, frozen=True):
    """The key of exactly one file. `secret` is empty under a plain profile."""

    id: str
    file_id: bytes
    secret: bytes
    created: int

    def __repr__(self) -> str:
        return f"DataKey(id={self.id!r})"

    def file_key(self, namespace: str) -> FileKey | None:
        """What opens the file of `namespace`; None for a plain file."""
        if not self.secret:
            return None
        return file_key(self.secret, namespace, format=RANDOM_KEY, file_id=self.file_id)


class NamespaceKeys(msgspec.Struct):
    """The keys of one namespace."""

    state: KeyState
    key: DataKey
    next_key: DataKey | None = None

    @property
    def keys(self) -> list[DataKey]:
        """The keys that the file may be under."""
        return [self.key] if self.next_key is None else [self.key, self.next_key]


class RetiredKey(msgspec.Struct, frozen=True):
    """A data key that a rotation replaced; backups from before may still be under it."""

    namespace: str
    key: DataKey
    retired: int


class DroppedFile(msgspec.Struct, frozen=True):
    """A file of the store that was dropped last. If it still exists, the drop was interrupted."""

    namespace: str
    file_id: bytes


class KeystoreContents(msgspec.Struct):
    """Everything in the keystore. Every change of keys raises `generation` by one.

    `running` is set while a node runs, and stays so after a kill. `meta_revision` is a revision
    that `__node_meta` has had: its own watermark.
    """

    generation: int = 0
    entries: dict[str, NamespaceKeys] = {}
    retired: list[RetiredKey] = []
    dropped: list[DroppedFile] = []
    chain: AuditChain = msgspec.field(default_factory=new_audit_chain, name="trail")
    running: bool = False
    meta_revision: int = 0


class KeystoreMedium(Protocol):
    """Where a keystore is saved."""

    async def save(self, contents: KeystoreContents, master: MasterKey | None) -> None:
        """Replace what is saved by `contents`, encrypted under `master`, durably."""


class Keystore:
    """The keystore of one data directory.

    Each verb is durable when it returns. If it raises an error, nothing has changed. Times are
    microseconds since 1970, UTC.
    """

    def __init__(
        self, medium: KeystoreMedium, master: MasterKey | None, contents: KeystoreContents
    ) -> None:
        """Take `contents`, as saved in `medium` under `master` (None: not encrypted)."""
        self._medium = medium
        self._master = master
        self._contents = contents
        self._changing = asyncio.Lock()

    # --- what it knows ------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """How many times keys were changed."""
        return self._contents.generation

    @property
    def encrypted(self) -> bool:
        """Whether the keystore and its stores are encrypted."""
        return self._master is not None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the master key."""
        return self._master.fingerprint if self._master else "none"

    @property
    def entries(self) -> Mapping[str, NamespaceKeys]:
        """The keys of each namespace."""
        return self._contents.entries

    @property
    def retired(self) -> Sequence[RetiredKey]:
        """The data keys that rotations replaced."""
        return self._contents.retired

    @property
    def dropped(self) -> Sequence[DroppedFile]:
        """The files that the last drop had to delete."""
        return self._contents.dropped

    @property
    def chain(self) -> AuditChain:
        """The end of the audit log."""
        return self._contents.chain

    @property
    def was_killed(self) -> bool:
        """Whether a node runs, or has not been stopped cleanly."""
        return self._contents.running

    @property
    def meta_revision(self) -> int:
        """A revision that `__node_meta` has had."""
        return self._contents.meta_revision

    def namespace_of(self, file_id: bytes) -> str | None:
        """The namespace whose file has or had this id; None if the id is unknown."""
        for namespace, entry in self._contents.entries.items():
            if any(key.file_id == file_id for key in entry.keys):
                return namespace
        was = (old.namespace for old in self._contents.retired if old.key.file_id == file_id)
        return next(was, None)

    # --- verbs --------------------------------------------------------------------------------

    async def add(self, namespace: str, now: int) -> None:
        """Make a data key for a new namespace, whose file can then be created."""
        async with self._change() as contents:
            contents.entries[namespace] = NamespaceKeys(KeyState.NEW, self._new_data_key(now))

    async def activate(self, namespace: str) -> None:
        """Note that the file of a new namespace is complete and durable."""
        async with self._change() as contents:
            contents.entries[namespace].state = KeyState.LIVE

    async def drop(self, namespace: str, now: int) -> None:
        """Destroy the keys of a namespace, those that were retired too."""
        async with self._change() as contents:
            entry = contents.entries.pop(namespace)
            contents.retired = [key for key in contents.retired if key.namespace != namespace]
            contents.dropped = [DroppedFile(namespace, key.file_id) for key in entry.keys]
            contents.chain.add(now, "dropped", namespace)

    async def forget(self, namespace: str, now: int, detail: str) -> None:
        """Destroy the keys of a namespace whose file is given up."""
        async with self._change() as contents:
            contents.entries.pop(namespace, None)
            contents.retired = [key for key in contents.retired if key.namespace != namespace]
            contents.chain.add(now, "forgotten", namespace, detail)

    async def accept(self, namespace: str, file_id: bytes | None, now: int, detail: str) -> None:
        """Note that an older copy of a file is taken as the truth.

        Args:
            namespace: Whose file it is.
            file_id: The id in it, if it may be under a key that a rotation has retired.
            now: The time.
            detail: What is lost.
        """
        async with self._change() as contents:
            entry = contents.entries.get(namespace)
            if entry is not None and file_id not in (None, entry.key.file_id):
                _bring_back(contents, namespace, entry, file_id)
            contents.chain.add(now, "accepted", namespace, detail)

    async def accept_node_meta(
        self, revision: int, lines: Sequence[AuditLine], now: int, detail: str
    ) -> int:
        """Note that an older, or a new, `__node_meta` is the truth, which is at `revision`.

        Returns the number of its audit lines that are sound; the log goes on after those.
        """
        async with self._change() as contents:
            contents.meta_revision = revision
            kept = contents.chain.cut(lines)
            contents.chain.add(now, "accepted", "__node_meta", detail)
        return kept

    async def change_master(self, master: MasterKey, now: int, detail: str = "") -> None:
        """Encrypt the keystore under another master key. Data keys and data stay."""
        async with self._change(master) as contents:
            contents.chain.add(now, "master key changed", detail=detail)

    async def begin_rotation(self, namespaces: Sequence[str] | None, now: int) -> list[str]:
        """Make the next data keys of namespaces, and return the names of those to be copied.

        Args:
            namespaces: None for those that an interrupted rotation left, or else all.
            now: The time.

        Raises:
            InvalidNamespace: There is no such namespace.
        """
        async with self._change() as contents:
            states = {name: entry.state for name, entry in contents.entries.items()}
            left = [name for name, state in states.items() if state is KeyState.ROTATING]
            if namespaces is None:
                chosen = left or [name for name, s in states.items() if s is KeyState.LIVE]
            else:
                chosen = list(dict.fromkeys(namespaces))
            for name in chosen:
                if states.get(name, KeyState.NEW) is KeyState.NEW:
                    raise InvalidNamespace(
                        f"There is no namespace {name!r}.", remedy="strongroom store ls"
                    )
            for name in set(chosen).difference(left):
                contents.entries[name].state = KeyState.ROTATING
                contents.entries[name].next_key = self._new_data_key(now)
            contents.chain.add(now, "rotation began", detail=f"{len(chosen)} namespaces")
        return sorted(chosen)

    async def finish_rotation(self, namespace: str, now: int) -> None:
        """Note that the file is under the next key, and retire the old one."""
        async with self._change() as contents:
            entry = contents.entries[namespace]
            assert entry.next_key is not None
            contents.retired.append(RetiredKey(namespace, entry.key, now))
            contents.chain.add(now, "data key rotated", namespace, f"{entry.key.id} is retired")
            entry.state, entry.key, entry.next_key = KeyState.LIVE, entry.next_key, None

    async def note(
        self, event: str, now: int, namespace: str | None = None, detail: str = ""
    ) -> None:
        """Add a line to the audit log. As no key changes, the generation stays."""
        async with self._change(changes_keys=False) as contents:
            contents.chain.add(now, event, namespace, detail)

    async def note_opening(self, newest: AuditLine | None, meta_revision: int, now: int) -> None:
        """Add the line of a start; `newest` is the last line in `__node_meta`."""
        async with self._change(changes_keys=False) as contents:
            contents.running, contents.meta_revision = True, meta_revision
            if newest is not None:
                contents.chain.catch_up(newest, now)
            detail = f"by user {os.getuid()}, process {os.getpid()}"
            contents.chain.add(now, "opened", detail=detail)

    async def note_closing(self, meta_revision: int) -> None:
        """Note a clean stop."""
        async with self._change(changes_keys=False) as contents:
            contents.running, contents.meta_revision = False, meta_revision

    @contextlib.asynccontextmanager
    async def _change(
        self, master: MasterKey | None = None, *, changes_keys: bool = True
    ) -> AsyncIterator[KeystoreContents]:
        """Change a copy of the contents in the block; it is saved at the end, and counts then."""
        async with self._changing:
            contents = msgspec.json.decode(
                msgspec.json.encode(self._contents), type=KeystoreContents
            )
            yield contents
            contents.generation += changes_keys
            await finish(self._save(contents, master or self._master))

    async def _save(self, contents: KeystoreContents, master: MasterKey | None) -> None:
        await self._medium.save(contents, master)
        self._master, self._contents = master, contents

    def _new_data_key(self, now: int) -> DataKey:
        secret = secrets.token_bytes(32) if self._master else b""
        return DataKey(secrets.token_hex(4), new_file_id(), secret, now)


def _bring_back(
    contents: KeystoreContents, namespace: str, entry: NamespaceKeys, file_id: bytes | None
) -> None:
    """Make the key with a file id that of a namespace again."""
    known = [(key, key.key) for key in contents.retired if key.namespace == namespace]
    for retired, key in known:
        if key.file_id == file_id:
            contents.retired.remove(retired)
            entry.state, entry.key, entry.next_key = KeyState.LIVE, key, None
            return
