"""A bounded cache of the records that a store was asked for last."""

from __future__ import annotations

from collections import OrderedDict

from strongroom.storage.records import Record, Write

RECORD_OVERHEAD = 200  # bytes that a record takes beside its value


class RecordCache(OrderedDict[str, Record]):
    """The records used last, as they are encoded, so that nobody can change what is stored.

    Look into it as into any dictionary, and `move_to_end` what was used; change it by its own
    methods, which keep count of the bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._size = 0

    def put(self, record: Record) -> None:
        """Take a record that was read, or that a commit has changed."""
        self.drop(record.key)
        self[record.key] = record
        self._size += len(record.value) + RECORD_OVERHEAD
        while self._size > self._limit:
            self.drop(next(iter(self)))

    def commit(self, write: Write, revision: int, now: int) -> None:
        """Change a record that is here to what a commit has made of it."""
        old = self[write.key]
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
        old = self.pop(key, None)
        if old is not None:
            self._size -= len(old.value) + RECORD_OVERHEAD

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        self._size = 0
