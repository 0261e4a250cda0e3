"""Writes in several stores that are stored together, or not at all.

Each store has a file of its own, and SQLite commits one at a time. So each transaction is made
ready and held; then a record in NODE_META says what all of them write, and with it all is decided;
then they are committed. A start that finds such a record does again what a kill has cut short:
while it is there, the only commit that can follow the revision that it names is its own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from strongroom.disk.remedies import put_back
from strongroom.errors import StorageError, StoreDamaged
from strongroom.storage.records import Batch, Write
from strongroom.storage.sqlite.store import SqliteStore
from strongroom.storage.sqlite.writer import Hold

UNIT = "unit/"
"""The prefix of the keys in NODE_META."""


class Part(msgspec.Struct):
    """What a unit writes into one store, whose revision was `base` before."""

    namespace: str
    base: int
    writes: list[Write]


_read = msgspec.msgpack.Decoder(list[Part]).decode


class Units:
    """Stores units, one at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._done: list[str] = []
        """Keys of the records of units that are stored, which can go."""

    async def store(
        self, stores: Sequence[SqliteStore], batches: Sequence[Batch], meta: SqliteStore
    ) -> None:
        """Store batches in their stores. Must not be cancelled.

        Raises:
            RevisionConflict: A condition does not hold; nothing was stored.
            StoreUnavailable: A disk refuses.
        """
        async with self._turn:
            holds = [Hold() for _ in batches]
            applying = [
                asyncio.ensure_future(store.apply_held(batch, hold))
                for store, batch, hold in zip(stores, batches, holds, strict=True)
            ]
            try:
                for hold, task in zip(holds, applying, strict=True):
                    either: list[asyncio.Future[Any]] = [hold.base, task]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if not hold.base.done():
                        await task  # it has failed
                key = await self._decide(holds, batches, stores, meta)
            except BaseException:
                await _end(holds, applying, commits=False)
                raise
            await self._finish(holds, applying, stores)
            self._done.append(key)

    async def _decide(
        self,
        holds: Sequence[Hold],
        batches: Sequence[Batch],
        stores: Sequence[SqliteStore],
        meta: SqliteStore,
    ) -> str:
        """Write the record with which the unit is stored; returns its key."""
        parts = [
            Part(batch.namespace, hold.base.result(), list(batch.writes))
            for batch, hold in zip(batches, holds, strict=True)
        ]
        key = f"{UNIT}{secrets.token_hex(8)}"
        try:
            await meta.apply([Write(key, msgspec.msgpack.encode(parts)), *self._deletions()])
        except StorageError:
            try:
                await meta.apply([Write(key, None)])
            except StorageError:  # it may be there: then the next start stores the unit
                for store in stores:
                    await store.connections.condemn("a unit of work may be half stored")
            raise
        self._done.clear()
        return key

    async def _finish(
        self,
        holds: Sequence[Hold],
        applying: Sequence[asyncio.Future[list[int]]],
        stores: Sequence[SqliteStore],
    ) -> None:
        outcomes = await _end(holds, applying, commits=True)
        for store, outcome in zip(stores, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                await store.connections.condemn("a unit of work is stored at the next start")
        failed = [each for each in outcomes if isinstance(each, BaseException)]
        if failed:
            raise failed[0]

    def _deletions(self) -> list[Write]:
        return [Write(key, None) for key in self._done]

    async def forget(self, meta: SqliteStore) -> None:
        """Delete the records of units that are stored."""
        if self._done:
            deletions = self._deletions()
            await meta.apply(deletions)
            del self._done[: len(deletions)]


async def _end(
    holds: Sequence[Hold], applying: Sequence[asyncio.Future[list[int]]], *, commits: bool
) -> list[list[int] | BaseException]:
    for hold in holds:
        hold.decide(commits=commits)
    return await asyncio.gather(*applying, return_exceptions=True)


async def complete(
    meta: SqliteStore, open_store: Callable[[str], Awaitable[SqliteStore | None]]
) -> None:
    """Store what the last run has decided and not stored.

    Args:
        meta: NODE_META.
        open_store: Opens a namespace; None if it was dropped since.

    Raises:
        StoreDamaged: A store is older than it was when the unit was decided.
    """
    page = await meta.scan(UNIT, limit=None, max_bytes=None)
    for record in page.records:
        for part in _read(record.value):
            store = await open_store(part.namespace)
            if store is not None:
                await _complete(store, part)
    if page.records:
        await meta.apply([Write(record.key, None) for record in page.records])


async def _complete(store: SqliteStore, part: Part) -> None:
    revision = (await store.connections.open()).revision
    if revision < part.base:
        raise StoreDamaged(
            f"{store.connections.path} is at revision {revision}, and was at {part.base}.",
            remedy=put_back(store.connections.path),
            path=store.connections.path,
            namespace=store.namespace,
        )
    if revision == part.base:
        await store.apply([msgspec.structs.replace(write, expect=None) for write in part.writes])
