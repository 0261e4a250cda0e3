"""Deletes many records, some hundred with each commit. Cut off in between, it can be repeated."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.storage.keys import Key
from strongroom.storage.typed import KeyValueStore

BATCH = 500
"""Writes in one commit."""


async def delete_all(store: KeyValueStore[bytes], prefix: Key) -> int:
    """Delete the records whose keys begin with `prefix`. Returns how many there were."""
    return await delete_keys(store, [key async for key in store.keys(prefix)])


async def delete_keys(store: KeyValueStore[bytes], keys: Sequence[str]) -> int:
    """Delete the records of `keys`. Returns how many there were."""
    deleted = 0
    for start in range(0, len(keys), BATCH):
        deleted += await store.delete_many(keys[start : start + BATCH])
    return deleted
