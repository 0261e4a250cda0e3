"""A cache of the records that were read most recently, limited in bytes."""

from __future__ import annotations

from collections import OrderedDict

from strongroom.storage.records import Record, Write

RECORD_OVERHEAD = 200  # bytes that a record needs besides its value


class RecordCache(OrderedDict[str, Record]):
    """The most recently used records by key. They are encoded, so no caller can change them.

    Read it like a dict and call `move_to_end` after a hit. Change it only through `put`, `commit`,
    `drop` and `clear`, which count bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._size = 0

    def put(self, record: Record) -> None:
        """Add or replace a record. Drops the least recently used ones to stay within the limit."""
        self.drop(record.key)
        self[record.key] = record
        self._size += len(record.value) + RECORD_OVERHEAD
        while self._size > self._limit:
            self.drop(next(iter(self)))

    def commit(self, write: Write, revision: int, now: int) -> None:
        """Apply a committed write to a record that is in the cache."""
        old = self[write.key]
        if old.revision >= revision > 0:
            return  # the record was read after this commit
        if write.value is None:
            self.drop(write.key)
        else:
            expired = old.expires is not None and old.expires <= now
            created = now if expired else old.created
            self.put(Record(write.key, write.value, revision, created, now, write.expires))

    def drop(self, key: str) -> None:
        """Remove a record, if it is here."""
        old = self.pop(key, None)
        if old is not None:
            self._size -= len(old.value) + RECORD_OVERHEAD

    def clear(self) -> None:
        """Remove all records."""
        super().clear()
        self._size = 0
