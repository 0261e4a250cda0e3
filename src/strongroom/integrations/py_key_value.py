"""py-key-value's `AsyncKeyValue` on a namespace of ours, for FastMCP and others that take one.

(collection, key)    the value as JSON, with the names where they are too long for a key
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from key_value.aio.errors import DeserializationError, InvalidKeyError, SerializationError
from key_value.aio.stores.base import (
    BaseCullStore,
    BaseDestroyCollectionStore,
    BaseDestroyStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
    ManagedEntry,
)

from strongroom.errors import InvalidKey
from strongroom.integrations.deleting import delete_all
from strongroom.storage.keys import Digest, Key
from strongroom.storage.provider import StorageProvider
from strongroom.storage.typed import Entry, KeyValueStore, Set

OWNER = "py-key-value/1"
MOST_NAMES = 10_000
"""Names that are listed without a limit, as in the stores of py-key-value."""


class _Stored(msgspec.Struct, omit_defaults=True):
    value: msgspec.Raw
    collection: str | None = None
    key: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Stored).decode


class StrongroomStore(
    BaseEnumerateKeysStore,
    BaseEnumerateCollectionsStore,
    BaseDestroyCollectionStore,
    BaseDestroyStore,
    BaseCullStore,
):
    """An `AsyncKeyValue` with all its optional protocols.

    >>> values = await StrongroomStore.open(provider)
    >>> await values.put("user-1", {"name": "Ada"}, collection="users", ttl=3600)
    >>> await values.get("user-1", collection="users")
    {'name': 'Ada'}

    Args:
        store: A store of bytes, which no other program writes.
        default_collection: The collection of calls that name none.
    """

    def __init__(
        self, store: KeyValueStore[bytes], *, default_collection: str | None = None
    ) -> None:
        super().__init__(default_collection=default_collection, stable_api=True)
        self._store = store

    @classmethod
    async def open(
        cls, provider: StorageProvider, namespace: str = "py_key_value"
    ) -> StrongroomStore:
        """Open a namespace of `provider`; an agent's is `self.storage_provider`."""
        return cls(await provider.get_bytes_store(namespace, owner=OWNER))

    # --- what py-key-value's base calls -------------------------------------------------------

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        entry = await self._store.entry(_key(collection, key))
        return None if entry is None else _managed(entry)

    async def _get_managed_entries(
        self, *, collection: str, keys: Sequence[str]
    ) -> list[ManagedEntry | None]:
        found = (self._get_managed_entry(collection=collection, key=key) for key in keys)
        return list(await asyncio.gather(*found))

    async def _put_managed_entry(
        self, *, collection: str, key: str, managed_entry: ManagedEntry
    ) -> None:
        await self._store.apply([_set(collection, key, managed_entry)])

    async def _put_managed_entries(
        self,
        *,
        collection: str,
        keys: Sequence[str],
        managed_entries: Sequence[ManagedEntry],
        ttl: float | None,  # noqa: ARG002 - each entry says when it expires
        created_at: datetime,  # noqa: ARG002
        expires_at: datetime | None,  # noqa: ARG002
    ) -> None:
        pairs = dict(zip(keys, managed_entries, strict=True))  # of two of one key the last counts
        await self._store.apply([_set(collection, key, entry) for key, entry in pairs.items()])

    async def _delete_managed_entry(self, *, collection: str, key: str) -> bool:
        return await self._store.delete(_key(collection, key))

    async def _delete_managed_entries(self, *, collection: str, keys: Sequence[str]) -> int:
        return await self._store.delete_many(_key(collection, key) for key in keys)

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        names: list[str] = []
        async for key in self._store.keys(_key(collection), limit=_most(limit)):
            name = Key.of(key).parts[1]
            if isinstance(name, Digest):
                name = (await self._stored(key)).key or name
            names.append(str(name))
        return names

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        names: list[str] = []
        async for group in self._store.groups():
            if len(names) == _most(limit):
                break
            [name] = group.parts
            if isinstance(name, Digest):
                async for key in self._store.keys(group, limit=1):
                    name = (await self._stored(key)).collection or name
            names.append(str(name))
        return names

    async def _stored(self, key: str) -> _Stored:
        data = await self._store.get(key)
        return _Stored(msgspec.Raw()) if data is None else _decode(data)

    async def _delete_collection(self, *, collection: str) -> bool:
        return await delete_all(self._store, _key(collection)) > 0

    async def _delete_store(self) -> bool:
        await delete_all(self._store, Key())
        return True

    async def _cull(self) -> None:
        """What has expired is gone already."""


def _key(*names: str) -> Key:
    try:
        return Key(*names)
    except InvalidKey as error:
        raise InvalidKeyError(str(error)) from None


def _set(collection: str, key: str, entry: ManagedEntry) -> Set[bytes]:
    name = _key(collection, key)
    cut = [isinstance(part, Digest) for part in name.parts]
    stored = _Stored(
        msgspec.Raw(_json(entry.value_as_dict)),
        collection if cut[0] else None,
        key if cut[1] else None,
    )
    return Set(name, _encode(stored), entry.ttl)


def _json(value: dict[str, Any]) -> bytes:
    try:
        _check_names(value)
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(f"The value cannot be kept as JSON: {error}") from None


def _check_names(value: Any) -> None:
    """Refuse names that JSON would change: they would come back as strings."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a name in it is not a string")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for each in value:
        _check_names(each)


def _managed(entry: Entry[bytes]) -> ManagedEntry:
    try:
        value: dict[str, Any] = msgspec.json.decode(_decode(entry.value).value)
    except msgspec.MsgspecError as error:
        raise DeserializationError(f"The value of {entry.key!r} is no JSON: {error}") from None
    return ManagedEntry(value=value, created_at=entry.updated, expires_at=entry.expires)


def _most(limit: int | None) -> int:
    return min(limit or MOST_NAMES, MOST_NAMES)
