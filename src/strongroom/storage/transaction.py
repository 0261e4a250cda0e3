"""Several reads and writes of a namespace as one, without locks."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Generic, Self

from strongroom.errors import NotStarted, StoreClosed
from strongroom.storage.encoding import RecordEncoding, V
from strongroom.storage.records import (
    Batch,
    Clock,
    Record,
    RecordStore,
    Write,
    check_key,
    expires_at,
)


class Transaction(Generic[V]):
    """What `KeyValueStore.transaction()` returns. Until it ends, only it sees its writes.

    It keeps the revision of each record that was read, and the writes, in memory. At the end one
    `apply` stores the writes, provided that every record read still has its revision.
    """

    def __init__(
        self, records: RecordStore, namespace: str, encoding: RecordEncoding[V], clock: Clock
    ) -> None:
        self._records = records
        self._namespace = namespace
        self._encoding = encoding
        self._clock = clock
        self._read: dict[str, Record | None] = {}
        self._writes: dict[str, Write] = {}
        self._begun = self._ended = False

    async def get(self, key: str) -> V | None:
        """The value of `key`, or what this transaction has written; None if there is none."""
        key = self._check(key)
        if write := self._writes.get(key):
            record = None if write.value is None else Record(key, write.value, 0, 0, 0)
        else:
            if key not in self._read:
                [self._read[key]] = await self._records.read((key,))
            record = self._read[key]
        return None if record is None else self._encoding.decode(record)

    async def set(self, key: str, value: V, *, ttl: float | timedelta | None = None) -> None:
        """Store `value` when the transaction ends."""
        key = self._check(key)
        expires = expires_at(self._records, ttl, self._clock)
        self._writes[key] = Write(key, self._encoding.encode(key, value), expires)

    async def delete(self, key: str) -> None:
        """Delete a record when the transaction ends. It need not exist."""
        key = self._check(key)
        self._writes[key] = Write(key, None)

    def begin(self) -> Self:
        """Allow reads and writes."""
        self._begun = True
        return self

    def end(self) -> Batch | None:
        """Refuse further reads and writes. Returns what is to be stored, if there is anything."""
        self._ended = True
        if not (self._writes or self._read):
            return None
        checks = {key: record.revision if record else 0 for key, record in self._read.items()}
        return Batch(self._namespace, tuple(self._writes.values()), checks)

    async def __aenter__(self) -> Self:
        return self.begin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        batch = self.end()
        if kind is None and batch is not None:
            await self._records.apply(batch.writes, checks=batch.checks)

    def _check(self, key: str) -> str:
        if not self._begun:
            raise NotStarted(
                "The transaction has not begun.",
                remedy="async with store.transaction() as transaction:",
            )
        if self._ended:
            raise StoreClosed(
                "The transaction has ended.", remedy="a new one, with store.transaction()"
            )
        return check_key(key)
