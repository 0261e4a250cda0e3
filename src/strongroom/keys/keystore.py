"""The keystore: one random data key for each namespace, and the end of the audit log.

Its contents are in memory. Each change is saved before it counts, together with its line of the
audit log. Under a plain profile the keystore has the same contents without secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

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
    that `__node_meta` has had: its own watermark. `changes_id` names the changes that continue
    this keystore.
    """

    generation: int = 0
    entries: dict[str, NamespaceKeys] = {}
    retired: list[RetiredKey] = []
    dropped: list[DroppedFile] = []
    chain: AuditChain = msgspec.field(default_factory=new_audit_chain, name="trail")
    running: bool = False
    meta_revision: int = 0
    changes_id: bytes = b""

    def apply(self, change: KeystoreChange) -> None:
        """Make a change."""
        self.generation, self.dropped = change.generation, change.dropped
        self.chain, self.running = change.chain, change.running
        self.meta_revision = change.meta_revision
        for namespace, keys in change.entries.items():
            if keys is None:
                self.entries.pop(namespace, None)
            else:
                self.entries[namespace] = keys
        if change.unretired:
            gone = set(change.unretired)
            self.retired = [old for old in self.retired if old.key.file_id not in gone]
        self.retired += change.retired

    def copy(self) -> KeystoreContents:
        """The same, to be changed apart."""
        return msgspec.structs.replace(self, entries={**self.entries}, retired=[*self.retired])


class KeystoreChange(msgspec.Struct, omit_defaults=True):
    """What a change of the keystore makes different. It is small, however many keys there are."""

    generation: int
    dropped: list[DroppedFile]
    chain: AuditChain = msgspec.field(name="trail")
    running: bool
    meta_revision: int
    entries: dict[str, NamespaceKeys | None] = {}
    """The keys of namespaces; None where they are destroyed."""
    retired: list[RetiredKey] = []
    """The keys that are retired now."""
    unretired: list[bytes] = []
    """The file ids of retired keys that are destroyed, or in use again."""


class KeystoreMedium(Protocol):
    """Where a keystore is saved."""

    async def append(self, change: KeystoreChange) -> bool:
        """Save a change, durably. False if it has not, since the keystore must be saved whole."""

    async def replace(self, contents: KeystoreContents, master: MasterKey | None) -> None:
        """Replace what is saved by `contents`, encrypted under `master`, durably."""

    def close(self) -> None:
        """Close what is open."""


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
        self._folded = {name.lower(): name for name in contents.entries}
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

    def named_like(self, namespace: str) -> list[str]:
        """The namespace whose name is the same but for upper and lower case, if there is one."""
        known = self._folded.get(namespace.lower())
        return [] if known is None else [known]

    def namespace_of(self, file_id: bytes) -> str | None:
        """The namespace whose file has or had this id; None if the id is unknown."""
        for namespace, entry in self._contents.entries.items():
            if any(key.file_id == file_id for key in entry.keys):
                return namespace
        was = (old.namespace for old in self._contents.retired if old.key.file_id == file_id)
        return next(was, None)

    def close(self) -> None:
        """Close what its medium has open."""
        self._medium.close()

    # --- verbs --------------------------------------------------------------------------------

    async def add(self, namespace: str, now: int) -> None:
        """Make a data key for a new namespace, whose file can then be created."""
        async with self._change() as change:
            change.entries[namespace] = NamespaceKeys(KeyState.NEW, self._new_data_key(now))

    async def activate(self, namespace: str) -> None:
        """Note that the file of a new namespace is complete and durable."""
        async with self._change() as change:
            change.entries[namespace] = self._changed(namespace, state=KeyState.LIVE)

    async def drop(self, namespace: str, now: int) -> None:
        """Destroy the keys of a namespace, those that were retired too."""
        async with self._change() as change:
            keys = self.entries[namespace].keys
            change.dropped = [DroppedFile(namespace, key.file_id) for key in keys]
            self._destroy(change, namespace)
            change.chain.add(now, "dropped", namespace)

    async def forget(self, namespace: str, now: int, detail: str) -> None:
        """Destroy the keys of a namespace whose file is given up."""
        async with self._change() as change:
            self._destroy(change, namespace)
            change.chain.add(now, "forgotten", namespace, detail)

    async def accept(self, namespace: str, file_id: bytes | None, now: int, detail: str) -> None:
        """Note that an older copy of a file is taken as the truth.

        Args:
            namespace: Whose file it is.
            file_id: The id in it, if it may be under a key that a rotation has retired.
            now: The time.
            detail: What is lost.
        """
        async with self._change() as change:
            for old in self._retired_of(namespace):
                if old.key.file_id == file_id:
                    change.unretired.append(old.key.file_id)
                    change.entries[namespace] = NamespaceKeys(KeyState.LIVE, old.key)
            change.chain.add(now, "accepted", namespace, detail)

    async def accept_node_meta(
        self, revision: int, lines: Sequence[AuditLine], now: int, detail: str
    ) -> int:
        """Note that an older, or a new, `__node_meta` is the truth, which is at `revision`.

        Returns the number of its audit lines that are sound; the log goes on after those.
        """
        async with self._change() as change:
            change.meta_revision = revision
            kept = change.chain.cut(lines)
            change.chain.add(now, "accepted", "__node_meta", detail)
        return kept

    async def change_master(self, master: MasterKey, now: int, detail: str = "") -> None:
        """Encrypt the keystore under another master key. Data keys and data stay."""
        async with self._change(master) as change:
            change.chain.add(now, "master key changed", detail=detail)

    async def begin_rotation(self, namespaces: Sequence[str] | None, now: int) -> list[str]:
        """Make the next data keys of namespaces, and return the names of those to be copied.

        Args:
            namespaces: None for those that an interrupted rotation left, or else all.
            now: The time.

        Raises:
            InvalidNamespace: There is no such namespace.
        """
        async with self._change() as change:
            states = {name: entry.state for name, entry in self.entries.items()}
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
                next_key = self._new_data_key(now)
                change.entries[name] = self._changed(
                    name, state=KeyState.ROTATING, next_key=next_key
                )
            change.chain.add(now, "rotation began", detail=f"{len(chosen)} namespaces")
        return sorted(chosen)

    async def finish_rotation(self, namespace: str, now: int) -> None:
        """Note that the file is under the next key, and retire the old one."""
        async with self._change() as change:
            entry = self.entries[namespace]
            assert entry.next_key is not None
            change.retired.append(RetiredKey(namespace, entry.key, now))
            change.chain.add(now, "data key rotated", namespace, f"{entry.key.id} is retired")
            change.entries[namespace] = NamespaceKeys(KeyState.LIVE, entry.next_key)

    async def note(
        self, event: str, now: int, namespace: str | None = None, detail: str = ""
    ) -> None:
        """Add a line to the audit log. As no key changes, the generation stays."""
        async with self._change(changes_keys=False) as change:
            change.chain.add(now, event, namespace, detail)

    async def note_opening(self, newest: AuditLine | None, meta_revision: int, now: int) -> None:
        """Add the line of a start; `newest` is the last line in `__node_meta`."""
        async with self._change(changes_keys=False) as change:
            change.running, change.meta_revision = True, meta_revision
            if newest is not None:
                change.chain.catch_up(newest, now)
            detail = f"by user {os.getuid()}, process {os.getpid()}"
            change.chain.add(now, "opened", detail=detail)

    async def note_closing(self, meta_revision: int) -> None:
        """Note a clean stop, in a keystore that is whole again."""
        async with self._change(self._master, changes_keys=False, whole=True) as change:
            change.running, change.meta_revision = False, meta_revision

    @contextlib.asynccontextmanager
    async def _change(
        self, master: MasterKey | None = None, *, changes_keys: bool = True, whole: bool = False
    ) -> AsyncIterator[KeystoreChange]:
        """A change to be filled in the block; it is saved at the end, and counts then."""
        async with self._changing:
            known = self._contents
            change = KeystoreChange(
                known.generation,
                known.dropped,
                known.chain.copy(),
                known.running,
                known.meta_revision,
            )
            yield change
            change.generation += changes_keys
            await finish(self._save(change, master, whole=whole or master is not None))

    async def _save(self, change: KeystoreChange, master: MasterKey | None, *, whole: bool) -> None:
        if whole or not await self._medium.append(change):
            contents, master = self._contents.copy(), master or self._master
            contents.apply(change)
            await self._medium.replace(contents, master)
            self._master = master
        self._contents.apply(change)
        for name, keys in change.entries.items():
            if keys is None:
                self._folded.pop(name.lower(), None)
            else:
                self._folded[name.lower()] = name

    def _changed(self, namespace: str, **changes: Any) -> NamespaceKeys:
        return msgspec.structs.replace(self.entries[namespace], **changes)

    def _destroy(self, change: KeystoreChange, namespace: str) -> None:
        change.entries[namespace] = None
        change.unretired += [old.key.file_id for old in self._retired_of(namespace)]

    def _retired_of(self, namespace: str) -> list[RetiredKey]:
        return [old for old in self.retired if old.namespace == namespace]

    def _new_data_key(self, now: int) -> DataKey:
        secret = secrets.token_bytes(32) if self._master else b""
        return DataKey(secrets.token_hex(4), new_file_id(), secret, now)
