"""The keystore of a sealed space: one record, which every change replaces as a whole.

    0 and 1     "SK"
    2           format: 1
    3           the number of slots
    4 to 19     the space's id, random
    then        the slots, 89 bytes each: kind (1 random master key, 2 passphrase), salt (16),
                the middle key, sealed under the master key
    then        the contents as JSON, sealed under the middle key

There are several slots while machines get a new master key one by one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom.errors import (
    FormatUnsupported,
    KeystoreOlder,
    RevisionConflict,
    StoreDamaged,
    StoreMissing,
    WrongMasterKey,
)
from strongroom.keys.master import MasterKey
from strongroom.keys.xaes import OVERHEAD_BYTES, Xaes
from strongroom.storage.provider import OWN_PREFIX, SHARED_PREFIX
from strongroom.storage.records import RecordStore, Write

NAMESPACE = "keystore"
"""The namespace of the engine that holds the keystore, and the record's key."""
DROPPED_REMEMBERED = 100
_MAGIC = b"SK\x01"
_START = 20
_SLOT = 1 + 16 + 32 + OVERHEAD_BYTES


class DataKey(msgspec.Struct, frozen=True):
    """What the values of a namespace are sealed under."""

    id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.id.hex()})"


class SealedNamespace(msgspec.Struct):
    """What the engine calls a namespace, and its data keys, of which the last one seals."""

    engine_name: str
    keys: list[DataKey]
    is_live: bool = False
    """Whether the engine has the namespace. Before that it holds no acknowledged record."""


class Contents(msgspec.Struct):
    """Everything in the keystore. Each change raises `generation` by one."""

    names: bytes
    generation: int = 1
    entries: dict[str, SealedNamespace] = {}
    dropped: list[str] = []
    """What the engine called namespaces whose keys were destroyed; it may still have them."""

    def add(self, namespace: str) -> None:
        """Make a data key for a namespace, unless another process has just made one."""
        if namespace in self.entries:
            return
        prefix = next((p for p in (SHARED_PREFIX, OWN_PREFIX) if namespace.startswith(p)), "")
        key = DataKey(secrets.token_bytes(8), secrets.token_bytes(32))
        self.entries[namespace] = SealedNamespace(f"{prefix}n{secrets.token_hex(16)}", [key])

    def activate(self, namespace: str) -> None:
        """Note that the engine has the namespace."""
        if namespace in self.entries:
            self.entries[namespace].is_live = True

    def drop(self, namespace: str) -> None:
        """Destroy the keys of a namespace."""
        if entry := self.entries.pop(namespace, None):
            self.dropped = [*self.dropped, entry.engine_name][-DROPPED_REMEMBERED:]


class Keystore:
    """The keystore as this process last read it. All processes of the space change it."""

    def __init__(self, store: RecordStore, master: MasterKey) -> None:
        self._store = store
        self._master = master
        self._revision = 0
        self._middle_key = secrets.token_bytes(32)
        self._slots = b""
        self.space_id = secrets.token_bytes(16)
        self.contents = Contents(secrets.token_bytes(32), generation=0)
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Read the keystore, or make it if the space is new.

        Raises:
            WrongMasterKey: It was made with another master key.
            StoreDamaged: It was changed.
            FormatUnsupported: A newer program made it.
        """
        await self.read()
        if not self._revision:
            self._slots = await asyncio.to_thread(self._new_slot)
            await self.change(lambda _contents: None)

    async def read(self) -> None:
        """Take over what other processes have changed.

        Raises:
            KeystoreOlder: The server has put back an older one.
        """
        [record] = await self._store.read([NAMESPACE])
        if record is None and self._revision:
            raise self._older("is gone")
        if record is None or record.revision == self._revision:
            return
        sealed = record.value
        if sealed[:3] != _MAGIC:
            raise FormatUnsupported("The keystore has an unknown format.", remedy="a newer version")
        self.space_id, end = sealed[4:_START], _START + _SLOT * sealed[3]
        if sealed[_START:end] != self._slots:
            self._slots = sealed[_START:end]
            self._middle_key = await asyncio.to_thread(self._open_slots)
        try:
            text = Xaes(self._middle_key).open(sealed[end:], self._label("keystore") + sealed[:end])
        except InvalidTag:
            raise StoreDamaged(
                "The keystore was changed on the server.", remedy="a backup of the space"
            ) from None
        contents = msgspec.json.decode(text, type=Contents)
        if contents.generation < self.contents.generation:
            raise self._older("was replaced by an older copy")
        self.contents, self._revision = contents, record.revision

    def keys(self, namespace: str) -> list[DataKey]:
        """The data keys of a namespace.

        Raises:
            StoreMissing: The namespace was dropped.
        """
        if entry := self.contents.entries.get(namespace):
            return entry.keys
        raise StoreMissing(
            f"The namespace {namespace!r} was dropped while it was open here.",
            remedy="open it again, which creates it anew",
            namespace=namespace,
        )

    async def change(self, change: Callable[[Contents], None]) -> None:
        """Save the keystore with `change`, which is repeated if another process was faster."""
        async with self._changing:
            while True:
                contents = msgspec.json.decode(msgspec.json.encode(self.contents), type=Contents)
                change(contents)
                contents.generation += 1
                write = Write(NAMESPACE, self._sealed(contents), expect=self._revision)
                try:
                    [self._revision] = await self._store.apply([write])
                except RevisionConflict:
                    await self.read()
                    continue
                self.contents = contents
                return

    def _sealed(self, contents: Contents) -> bytes:
        head = _MAGIC + bytes([len(self._slots) // _SLOT]) + self.space_id + self._slots
        text = msgspec.json.encode(contents)
        return head + Xaes(self._middle_key).seal(text, self._label("keystore") + head)

    def _new_slot(self) -> bytes:
        head = bytes([self._master.format]) + secrets.token_bytes(16)
        box = self._slot_box(head)
        assert box is not None  # the slot has the master key's own kind
        return head + box.seal(self._middle_key, self._label("slot") + head)

    def _open_slots(self) -> bytes:
        for start in range(0, len(self._slots), _SLOT):
            head, sealed = self._slots[start : start + 17], self._slots[start + 17 : start + _SLOT]
            try:
                if box := self._slot_box(head):
                    return box.open(sealed, self._label("slot") + head)
            except InvalidTag:
                continue
        raise WrongMasterKey(
            "The space was made with another master key.",
            remedy="the master key with which the other nodes of this space run",
        )

    def _slot_box(self, head: bytes) -> Xaes | None:
        root = self._master.root(head[0], head[1:])
        if root is None:
            return None
        return Xaes(HKDFExpand(SHA256(), 32, self._label("slot")).derive(root))

    def _label(self, what: str) -> bytes:
        return f"strongroom/{what}/v1".encode() + b"\0" + self.space_id

    def _older(self, how: str) -> KeystoreOlder:
        return KeystoreOlder(
            f"The space's keystore {how}.", remedy="the newest backup of the whole space"
        )
