"""The store that users hold: typed, with all conveniences, on top of any `RecordStore`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Generic
from weakref import WeakValueDictionary

import msgspec

from strongroom.errors import KeyExists, KeyMissing, NotSupported, RevisionConflict
from strongroom.storage.encoding import Encoding, M, Upgrade
from strongroom.storage.records import (
    PAGE_RECORDS,
    Clock,
    Feature,
    Record,
    RecordStore,
    Write,
    check_key,
    system_clock,
)
from strongroom.storage.transaction import Transaction

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_TIME = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


class Entry(msgspec.Struct, Generic[M], frozen=True):
    """A record with what the store knows about it."""

    key: str
    value: M
    revision: int
    created_us: int
    """Microseconds since 1970, UTC, as the other times; the properties make datetimes of them."""
    updated_us: int
    expires_us: int | None

    @property
    def created(self) -> datetime:
        """When the key came to be, in UTC."""
        return _datetime(self.created_us)

    @property
    def updated(self) -> datetime:
        """When this value was stored, in UTC."""
        return _datetime(self.updated_us)

    @property
    def expires(self) -> datetime | None:
        """When the record goes, in UTC; None if it stays."""
        return None if self.expires_us is None else _datetime(self.expires_us)


class Change(msgspec.Struct, Generic[M], frozen=True):
    """The latest state of a changed key. `value` is None where it was deleted or has expired."""

    key: str
    value: M | None
    revision: int


class KeyValueStore(Generic[M]):
    """The records of one namespace, each an instance of one Pydantic model.

    >>> notes = await provider.get_kv_store(Note, "notes")
    >>> await notes.set("first", Note(text="Hello"))
    >>> await notes.get("first")
    Note(text='Hello')

    Keys are strings of 1 to 1024 UTF-8 bytes without NUL, in the order of these bytes. Each write
    takes a revision; within the namespace they only grow. `if_revision` makes a write depend on the
    revision at which the record is, 0 meaning that there is none.
    """

    def __init__(
        self,
        records: RecordStore,
        model: type[M],
        namespace: str,
        clock: Clock = system_clock,
        upgrade: Sequence[Upgrade] = (),
    ) -> None:
        self._records = records
        self._encoding = Encoding(model, namespace, upgrade)
        self._namespace = namespace
        self._clock = clock
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- one record ---------------------------------------------------------------------------

    async def get(self, key: str) -> M | None:
        """The value of `key`, a fresh object each time; None if there is none."""
        check_key(key)
        [record] = await self._records.read((key,))
        return None if record is None else self._encoding.decode(record)

    async def entry(self, key: str) -> Entry[M] | None:
        """The value of `key` with its revision and times; None if there is none."""
        check_key(key)
        [record] = await self._records.read((key,))
        return None if record is None else self._entry(record)

    async def set(
        self,
        key: str,
        value: M,
        *,
        ttl: float | timedelta | None = None,
        if_revision: int | None = None,
    ) -> int:
        """Store `value`, and return its revision once that is durable.

        Args:
            key: The record's key.
            value: An instance of the store's model.
            ttl: After so many seconds the record is gone; None for never, whatever it was before.
            if_revision: Only if the record is at this revision; 0: only if there is none.

        Raises:
            RecordInvalid: `value` holds what its model does not allow, or could not be read again.
            RevisionConflict: `if_revision` does not hold.
        """
        check_key(key)
        data = self._encoding.encode(key, value)
        write = Write(key, data, self._expiry(ttl), if_revision)
        [revision] = await self._records.apply((write,))
        return revision

    async def create(self, key: str, value: M, *, ttl: float | timedelta | None = None) -> int:
        """Store `value` under a new key. KeyExists if the key is there."""
        try:
            return await self.set(key, value, ttl=ttl, if_revision=0)
        except RevisionConflict as conflict:
            raise KeyExists(key, expected=0, found=conflict.found) from None

    async def update(self, key: str, value: M) -> int:
        """Store `value` under a key that is there, with the expiry it has. KeyError if absent."""
        check_key(key)
        data = self._encoding.encode(key, value)

        def replace(record: Record | None) -> bytes:
            if record is None:
                raise self._missing(key)
            return data

        return await self._swap(key, replace)

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete a record. False if there was none."""
        check_key(key)
        [revision] = await self._records.apply((Write(key, None, expect=if_revision),))
        return revision != 0

    async def modify(self, key: str, function: Callable[[M], M], *, default: M | None = None) -> M:
        """Replace a value by what `function` makes of it, atomically, and return the new value.

        >>> await counters.modify("visits", lambda c: Counter(n=c.n + 1), default=Counter(n=0))

        The record keeps the expiry it has. `function` may run more than once, when others write the
        same key meanwhile. Where there is no record it gets a copy of `default`; without a default
        that is a KeyError.
        """
        check_key(key)
        result: M

        def change(record: Record | None) -> bytes:
            nonlocal result
            if record is not None:
                value = self._encoding.decode(record)
            elif default is not None:
                value = default.model_copy(deep=True)
            else:
                raise self._missing(key)
            result = function(value)
            return self._encoding.encode(key, result)

        await self._swap(key, change)
        return result

    # --- many records -------------------------------------------------------------------------

    async def list(self, prefix: str = "") -> dict[str, M]:
        """All records whose keys begin with `prefix`, in key order, as of one moment."""
        _check_range(prefix)
        page = await self._records.scan(prefix, limit=None, max_bytes=None)
        if Feature.ORDERED not in self._records.features:
            page.records.sort(key=lambda record: record.key)
        values = {}
        for number, record in enumerate(page.records, start=1):
            values[record.key] = self._encoding.decode(record)
            if number % PAGE_RECORDS == 0:
                await asyncio.sleep(0)  # a long list lets others run
        return values

    async def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncGenerator[Entry[M], None]:
        """The records whose keys begin with `prefix`, in key order, however many they are.

        >>> async for entry in notes.scan("2026-"):
        ...     print(entry.key, entry.value.text)

        Reads page by page and holds nothing in between: a key that is there throughout comes
        exactly once, one that comes or goes meanwhile may be among them or not.

        Args:
            prefix: What the keys begin with.
            after: Go on behind this key, which need not exist.
            limit: At most so many.
            reverse: From the last key to the first.
        """
        async for page in self._pages(prefix, after, limit, reverse=reverse):
            for record in page:
                yield self._entry(record)

    async def keys(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncGenerator[str, None]:
        """The keys alone, as `scan` goes through them; the values are not read."""
        async for page in self._pages(prefix, after, limit, reverse=reverse, values=False):
            for record in page:
                yield record.key

    async def count(self, prefix: str = "") -> int:
        """How many records have keys that begin with `prefix`."""
        _check_range(prefix)
        return await self._records.count(prefix)

    async def get_many(self, keys: Iterable[str]) -> dict[str, M]:
        """The values of `keys`, in their order; those that do not exist are left out."""
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            check_key(key)
        records = await self._records.read(wanted)
        return {record.key: self._encoding.decode(record) for record in records if record}

    async def set_many(
        self, values: Mapping[str, M], *, ttl: float | timedelta | None = None
    ) -> dict[str, int]:
        """Store all of `values`, or none, and return their revisions."""
        self._require(Feature.ATOMIC, "set_many()")
        expires = self._expiry(ttl)
        writes = []
        for key, value in values.items():
            check_key(key)
            writes.append(Write(key, self._encoding.encode(key, value), expires))
        return dict(zip(values, await self._records.apply(writes), strict=True))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Delete all of `keys`, or none, and return how many there were."""
        self._require(Feature.ATOMIC, "delete_many()")
        writes = [Write(key, None) for key in dict.fromkeys(keys)]
        for write in writes:
            check_key(write.key)
        return sum(revision != 0 for revision in await self._records.apply(writes))

    def transaction(self) -> Transaction[M]:
        """Several reads and writes as one: at the end all writes are stored, or none.

        >>> async with accounts.transaction() as transaction:
        ...     source, target = await transaction.get("a"), await transaction.get("b")
        ...     await transaction.set("a", Account(balance=source.balance - 10))
        ...     await transaction.set("b", Account(balance=target.balance + 10))

        Nothing is locked meanwhile. When one of the records that were read has changed at the end,
        nothing is stored and RevisionConflict raised: run the block again.
        """
        self._require(Feature.ATOMIC, "transaction()")
        return Transaction(self._records, self._encoding, self._expiry)

    async def watch(
        self, prefix: str = "", *, after: int | None = None
    ) -> AsyncGenerator[Change[M], None]:
        """The changes of keys that begin with `prefix`, in the order of their revisions, endlessly.

        >>> async for change in notes.watch(after=cursor):
        ...     cursor = change.revision
        ...     break

        Each change is the latest state of its key; states in between may be left out. Records that
        expire are changes too. Nothing is missed by whoever goes on from the last revision seen.

        Args:
            prefix: What the keys begin with.
            after: The last revision seen; 0 begins with all that is there, None with what comes.

        Raises:
            WatchExpired: `after` is too old for the store to know what was deleted since.
        """
        self._require(Feature.WATCH, "watch()")
        _check_range(prefix)
        since = (await self._records.changes(None)).cursor
        after = since if after is None else after
        walk = since if after == 0 else None
        while True:
            page = await self._records.changes(after, since=walk, prefix=prefix)
            for change in page.changes:
                value = None if change.record is None else self._encoding.decode(change.record)
                yield Change(change.key, value, change.revision)
            after = page.cursor

    def check(self, record: Record) -> None:
        """Raise RecordInvalid unless `record` fits the model."""
        self._encoding.decode(record)

    # --- within -------------------------------------------------------------------------------

    async def _swap(self, key: str, change: Callable[[Record | None], bytes]) -> int:
        """Replace a record by what `change` makes of it, unless another write comes between."""
        turn = self._turns.setdefault(key, asyncio.Lock())  # gone when the last to wait has left
        async with turn:
            while True:
                [record] = await self._records.read((key,))
                data = change(record)
                expires, revision = (record.expires, record.revision) if record else (None, 0)
                try:
                    [new] = await self._records.apply((Write(key, data, expires, revision),))
                except RevisionConflict:
                    await asyncio.sleep(0)
                else:
                    return new

    async def _pages(
        self,
        prefix: str,
        after: str | None,
        limit: int | None,
        *,
        reverse: bool,
        values: bool = True,
    ) -> AsyncGenerator[Sequence[Record], None]:
        _check_range(prefix, after)
        if after is not None or reverse:
            self._require(Feature.ORDERED, "after= and reverse=")
        left = math.inf if limit is None else limit
        while left > 0:
            size = int(min(PAGE_RECORDS, left))
            page = await self._records.scan(
                prefix, after=after, limit=size, reverse=reverse, values=values
            )
            yield page.records
            if not page.more:
                return
            left -= len(page.records)
            after = page.records[-1].key

    def _entry(self, record: Record) -> Entry[M]:
        return Entry(
            record.key,
            self._encoding.decode(record),
            record.revision,
            record.created,
            record.updated,
            record.expires,
        )

    def _expiry(self, ttl: float | timedelta | None) -> int | None:
        """The time in microseconds at which a record with this `ttl` expires."""
        if ttl is None:
            return None
        self._require(Feature.TTL, "ttl=")
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if not seconds > 0:
            raise ValueError(f"ttl is {ttl!r}, and must be more than 0 seconds.")
        if seconds > _LAST_TIME / 1e6:
            raise ValueError(f"ttl is {ttl!r}; pass None for a record that never expires.")
        return min(self._clock() + math.ceil(seconds * 1e6), _LAST_TIME)

    def _require(self, feature: Feature, what: str) -> None:
        if feature not in self._records.features:
            declared = ", ".join(sorted(has.name for has in self._records.features)) or "nothing"
            raise NotSupported(
                f"{what} needs a store that declares {feature.name}; {self._namespace!r} is in "
                f"{type(self._records).__name__}, which declares {declared}."
            )

    def _missing(self, key: str) -> KeyMissing:
        return KeyMissing(f"{self._namespace!r} has no record {key!r}.", remedy="set() or create()")


def _check_range(prefix: str, after: str | None = None) -> None:
    for key in (prefix, after):
        if key:
            check_key(key)


def _datetime(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
