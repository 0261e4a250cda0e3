"""The records of a store that were used last."""

from __future__ import annotations

from collections import OrderedDict

from strongroom.storage.records import Record, Write

RECORD_OVERHEAD = 200  # bytes that a record takes beside its value


class RecordCache:
    """The records used last, as they are encoded, so that nobody can change what is stored."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._records: OrderedDict[str, Record] = OrderedDict()
        self.keys = self._records.keys()

    def get(self, key: str) -> Record | None:
        """The record, which may have expired; None if it is not here."""
        record = self._records.get(key)
        if record is not None:
            self._records.move_to_end(key)
        return record

    def put(self, record: Record) -> None:
        """Take a record that was read, or that a commit has changed."""
        self.drop(record.key)
        self._records[record.key] = record
        self._size += len(record.value) + RECORD_OVERHEAD
        while self._size > self._limit:
            _, oldest = self._records.popitem(last=False)
            self._size -= len(oldest.value) + RECORD_OVERHEAD

    def commit(self, write: Write, revision: int, now: int) -> None:
        """Change a record that is here to what a commit has made of it."""
        old = self._records[write.key]
        if old.revision >= revision > 0:
            return  # it was read after the commit
        if write.value is None:
            self.drop(write.key)
        else:
            expired = old.expires is not None and old.expires <= now
            created = now if expired else old.created
            self.put(Record(write.key, write.value, revision, created, now, write.expires))

    def drop(self, key: str) -> None:
        """Forget a record."""
        old = self._records.pop(key, None)
        if old is not None:
            self._size -= len(old.value) + RECORD_OVERHEAD

    def clear(self) -> None:
        """Forget all."""
        self._records.clear()
        self._size = 0
