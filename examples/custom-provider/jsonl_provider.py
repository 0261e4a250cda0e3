"""A storage provider of one's own: a namespace is a file of JSON lines, one for each `apply`.

A line stands in the file wholly or not at all, so a batch does too. All records are also in memory,
and the file only grows: fine for some thousands of records that one wants to read with `less`.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from strongroom.errors import (
    DirectoryInUse,
    NotSupported,
    RevisionConflict,
    StoreClosed,
    StoreDamaged,
    StoreUnavailable,
)
from strongroom.settings import StorageSettings
from strongroom.storage import (
    Changes,
    Clock,
    Feature,
    Page,
    Record,
    RecordStore,
    StorageProvider,
    Write,
    check_namespace,
    prefix_end,
    system_clock,
)

SUFFIX = ".jsonl"


class JsonLinesProvider(StorageProvider):
    """Keeps each namespace in `<namespace>.jsonl` in FAME_STORAGE_DB_DIRECTORY, unencrypted."""

    needs_directory = True

    def __init__(self, settings: StorageSettings, clock: Clock = system_clock) -> None:
        super().__init__(settings, clock)
        assert settings.directory is not None  # `needs_directory` has seen to it
        self._directory = settings.directory
        self._stores: dict[str, JsonLinesStore] = {}
        self._opening = asyncio.Lock()
        self._lock: int | None = None

    async def start(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DirectoryInUse(f"Another process owns {self._directory}.") from None

    async def open(self, namespace: str) -> RecordStore:
        async with self._opening:
            if self._lock is None:
                raise StoreClosed("The provider is closed.", namespace=namespace)
            namespace = check_namespace(namespace, await self.namespaces())
            store = self._stores.get(namespace)
            if store is None or store.closed:
                path = self._directory / f"{namespace}{SUFFIX}"
                store = await asyncio.to_thread(JsonLinesStore, path, self.clock)
                self._stores[namespace] = store
            return store

    async def namespaces(self) -> list[str]:
        return sorted(path.name.removesuffix(SUFFIX) for path in self._directory.glob(f"*{SUFFIX}"))

    async def drop(self, namespace: str) -> None:
        namespace = check_namespace(namespace)
        if store := self._stores.pop(namespace, None):
            await store.close()
        (self._directory / f"{namespace}{SUFFIX}").unlink(missing_ok=True)
        _sync_directory(self._directory)

    async def close(self) -> None:
        async with self._opening:
            for store in self._stores.values():
                await store.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


class JsonLinesStore(RecordStore):
    """One file, and what it holds. It has no expiry and tells nobody of changes, and says so."""

    features = frozenset({Feature.DURABLE, Feature.ATOMIC, Feature.ORDERED})

    def __init__(self, path: Path, clock: Clock) -> None:
        self.closed = False
        self._path = path
        self._clock = clock
        self._records: dict[str, Record] = {}
        self._keys: list[str] = []  # sorted: by code point, which is the order of UTF-8 bytes
        self._revision = 0
        self._turn = asyncio.Lock()
        self._applying: set[asyncio.Task[list[int]]] = set()
        self._file = path.open("ab+")
        _sync_directory(path.parent)
        self._load()

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        self._refuse_closed()
        return [self._records.get(key) for key in keys]

    async def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = 256,
        max_bytes: int | None = 1024 * 1024,
        reverse: bool = False,
        values: bool = True,
    ) -> Page:
        await asyncio.sleep(0)  # let others run between the pages of a long scan
        self._refuse_closed()
        records: list[Record] = []
        size = 0
        for key in self._range(prefix, after, reverse=reverse):
            record = self._records[key]
            if not values:
                record = Record(key, b"", record.revision, record.created, record.updated)
            size += len(record.value)
            full = len(records) == limit or (max_bytes is not None and size > max_bytes)
            if records and full:
                return Page(records, more=True)
            records.append(record)
        return Page(records, more=False)

    async def count(self, prefix: str = "") -> int:
        self._refuse_closed()
        return len(self._range(prefix, None, reverse=False))

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        # A task of its own: when the caller is cancelled, the write still comes to its end.
        task = asyncio.create_task(self._apply(writes, checks or {}))
        self._applying.add(task)
        task.add_done_callback(self._applying.discard)
        return await asyncio.shield(task)

    async def changes(
        self, after: int | None, *, since: int | None = None, prefix: str = "", limit: int = 256
    ) -> Changes:
        raise NotSupported("Files of JSON lines cannot be watched.")

    async def close(self) -> None:
        self.closed = True
        await asyncio.gather(*self._applying, return_exceptions=True)
        self._file.close()

    async def _apply(self, writes: Sequence[Write], checks: Mapping[str, int]) -> list[int]:
        async with self._turn:
            self._refuse_closed()
            conditions = [(write.key, write.expect) for write in writes if write.expect is not None]
            for key, expected in (*conditions, *checks.items()):
                record = self._records.get(key)
                found = record.revision if record else 0
                if found != expected:
                    raise RevisionConflict(key, expected=expected, found=found)
            lines = [
                self._line(write, self._revision + number)
                for number, write in enumerate(writes, start=1)
                if write.value is not None or write.key in self._records
            ]
            if lines:
                await asyncio.to_thread(self._append, lines)
            for line in lines:
                self._take(line)
            revisions = {line["key"]: line["revision"] for line in lines}
            return [revisions.get(write.key, 0) for write in writes]

    def _line(self, write: Write, revision: int) -> dict[str, Any]:
        old, now = self._records.get(write.key), self._clock()
        return {
            "key": write.key,
            "revision": revision,
            "created": old.created if old else now,
            "updated": now,
            "value": None if write.value is None else base64.b64encode(write.value).decode(),
        }

    def _append(self, lines: list[dict[str, Any]]) -> None:
        """Write one line for all, and return when it is on the disk."""
        try:
            self._file.write(json.dumps(lines).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.closed = True  # what the file holds now, only reading it again can tell
            with suppress(OSError):
                self._file.close()
            raise StoreUnavailable(f"{self._path}: {error.strerror}", path=self._path) from error

    def _load(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):  # cut short by a crash, so never acknowledged
                self._file.truncate(end)
                break
            end += len(line)
            try:
                for change in json.loads(line):
                    self._take(change)
            except (ValueError, KeyError, TypeError) as error:
                self._file.close()
                raise StoreDamaged(
                    f"{self._path}, line {number}, is not what was written.", path=self._path
                ) from error

    def _take(self, line: dict[str, Any]) -> None:
        """Bring the records up to date with one change of the file."""
        key, value, revision = line["key"], line["value"], line["revision"]
        self._revision = revision
        if value is None:
            del self._records[key]
            del self._keys[bisect_left(self._keys, key)]
            return
        if key not in self._records:
            insort(self._keys, key)
        data = base64.b64decode(value)
        self._records[key] = Record(key, data, revision, line["created"], line["updated"])

    def _range(self, prefix: str, after: str | None, *, reverse: bool) -> list[str]:
        end = prefix_end(prefix)
        first = bisect_left(self._keys, prefix)
        last = len(self._keys) if end is None else bisect_left(self._keys, end)
        if after is not None and reverse:
            last = min(last, bisect_left(self._keys, after))
        elif after is not None:
            first = max(first, bisect_right(self._keys, after))
        keys = self._keys[first:last]
        return keys[::-1] if reverse else keys

    def _refuse_closed(self) -> None:
        if self.closed:
            raise StoreClosed(f"{self._path} is closed.", path=self._path)


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
