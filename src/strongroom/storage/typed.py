"""The typed store that users call, on top of any `RecordStore`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, cast
from weakref import WeakValueDictionary

import msgspec

from strongroom.errors import KeyExists, KeyMissing, RevisionConflict, StorageError
from strongroom.storage.encoding import Encoding, RecordEncoding, Upgrade, V
from strongroom.storage.keys import Key
from strongroom.storage.opaque import BytesEncoding
from strongroom.storage.records import (
    PAGE_RECORDS,
    Batch,
    Clock,
    Feature,
    Record,
    RecordStore,
    Write,
    check_feature,
    check_key,
    expires_at,
    shown_key,
    system_clock,
    to_datetime,
)
from strongroom.storage.transaction import Transaction

_ALL_TUPLES = Key()


class Entry(msgspec.Struct, Generic[V], frozen=True):
    """A record with its revision and times."""

    key: str
    value: V
    revision: int
    created_us: int
    """Microseconds since 1970, UTC, like the other times. The properties return datetimes."""
    updated_us: int
    expires_us: int | None

    @property
    def created(self) -> datetime:
        """When the record was created, in UTC."""
        return to_datetime(self.created_us)

    @property
    def updated(self) -> datetime:
        """When this value was stored, in UTC."""
        return to_datetime(self.updated_us)

    @property
    def expires(self) -> datetime | None:
        """When the record expires, in UTC; None if it does not."""
        return None if self.expires_us is None else to_datetime(self.expires_us)


class Set(msgspec.Struct, Generic[V], frozen=True):
    """A write of `KeyValueStore.apply`: store `value`, under the conditions that `set` has."""

    key: str
    value: V
    ttl: float | timedelta | None = None
    expect: int | None = None
    """The revision that the record must have; 0: there must be none."""


class Delete(msgspec.Struct, frozen=True):
    """A write of `KeyValueStore.apply`: delete the record, if there is one."""

    key: str
    expect: int | None = None


class Change(msgspec.Struct, Generic[V], frozen=True):
    """The latest state of a changed key. `value` is None if it was deleted or has expired."""

    key: str
    value: V | None
    revision: int


class KeyValueStore(Generic[V]):
    """The records of one namespace, each an instance of one Pydantic model, or bytes.

    >>> notes = await provider.get_kv_store(Note, "notes")
    >>> await notes.set("first", Note(text="Hello"))
    >>> await notes.get("first")
    Note(text='Hello')

    Keys are strings of 1 to 1024 UTF-8 bytes without NUL, and sorted by these bytes; a `Key` stands
    for a tuple, and is given back as one. Each write
    takes a new revision; within a namespace revisions only grow. With `if_revision` a write happens
    only if the record has this revision; 0 means that there is no record.
    """

    def __init__(
        self,
        records: RecordStore,
        model: type[V],
        namespace: str,
        clock: Clock = system_clock,
        upgrade: Sequence[Upgrade] = (),
        *,
        encrypts: bool = True,
        owner: str = "",
    ) -> None:
        made: Any = (
            BytesEncoding(namespace, owner)
            if model is bytes
            else Encoding(cast("Any", model), namespace, upgrade, encrypts=encrypts)
        )
        self._records = records
        self._encoding: RecordEncoding[V] = made
        self.namespace = namespace
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<KeyValueStore {self.namespace!r} of {self._encoding.model.__name__}>"

    def is_on(self, records: RecordStore) -> bool:
        """Whether this is a store on `records`, which was not dropped since."""
        return self._records is records

    def check_model(self, model: type[Any]) -> None:
        """Raise StorageError unless the records are of `model`, or it is a new version of theirs.

        What is stored as one model would lose fields when it is changed as another.
        """
        own = self._encoding.model
        if (own.__module__, own.__qualname__) != (model.__module__, model.__qualname__):
            raise StorageError(
                f"{self.namespace!r} is open as a store of {own.__qualname__}, and "
                f"{model.__qualname__} is another model.",
                remedy="the same model in both places, or another namespace",
            )

    # --- one record ---------------------------------------------------------------------------

    async def get(self, key: str, *, touch: float | timedelta | None = None) -> V | None:
        """The value of `key`, a new object each time; None if there is none.

        With `touch` the record expires after that time from now, as after `touch()`.
        """
        if touch is not None and not await self.touch(key, touch):
            return None
        key = check_key(key)
        [record] = await self._records.read((key,))
        return None if record is None else self._encoding.decode(record)

    async def entry(self, key: str) -> Entry[V] | None:
        """The value of `key` with its revision and times; None if there is none."""
        key = check_key(key)
        [record] = await self._records.read((key,))
        return None if record is None else self._entry(record)

    async def set(
        self,
        key: str,
        value: V,
        *,
        ttl: float | timedelta | None = None,
        if_revision: int | None = None,
    ) -> int:
        """Store `value`. Returns its revision when it is durable.

        Args:
            key: The record's key.
            value: An instance of the store's model.
            ttl: Seconds until the record expires. None: it never expires, even if it did before.
            if_revision: Store only if the record has this revision; 0: only if there is none.

        Raises:
            RecordInvalid: `value` does not fit its model, or could not be read again.
            RevisionConflict: The record has another revision than `if_revision`.
        """
        key = check_key(key)
        data = self._encoding.encode(key, value)
        write = Write(key, data, expires_at(self._records, ttl, self._clock), if_revision)
        [revision] = await self._records.apply((write,))
        return revision

    async def create(self, key: str, value: V, *, ttl: float | timedelta | None = None) -> int:
        """Store `value` under a new key. Raises KeyExists if there is a record."""
        try:
            return await self.set(key, value, ttl=ttl, if_revision=0)
        except RevisionConflict as conflict:
            raise KeyExists(key, expected=0, found=conflict.found) from None

    async def touch(self, key: str, ttl: float | timedelta | None) -> bool:
        """Move the expiry of a record, which keeps its value, times and revision.

        >>> await notes.touch("2026-01-01", ttl=1800)
        True

        Watchers see nothing of it.

        Args:
            key: The record's key.
            ttl: Seconds from now until the record expires. None: it never expires.

        Returns:
            Whether there is such a record, when its new expiry is durable.
        """
        check_feature(self._records, Feature.TOUCH, "touch")
        expires = expires_at(self._records, ttl, self._clock)
        return await self._records.touch(check_key(key), expires)

    async def update(self, key: str, value: V) -> int:
        """Replace the value of an existing record, which keeps its expiry. Raises KeyMissing."""
        key = check_key(key)
        data = self._encoding.encode(key, value)

        def replace(record: Record | None) -> bytes:
            if record is None:
                raise self._missing(key)
            return data

        return await self._swap(key, replace)

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete a record. Returns whether there was one."""
        key = check_key(key)
        [revision] = await self._records.apply((Write(key, None, expect=if_revision),))
        return revision != 0

    async def modify(self, key: str, function: Callable[[V], V], *, default: V | None = None) -> V:
        """Replace a value by what `function` returns for it, atomically. Returns the new value.

        >>> await counters.modify("visits", lambda c: Counter(n=c.n + 1), default=Counter(n=0))

        The record keeps its expiry. `function` may run more than once, if others write the same key
        meanwhile. If there is no record it gets a copy of `default`; without a default, KeyMissing
        is raised.
        """
        key = check_key(key)
        result: V

        def change(record: Record | None) -> bytes:
            nonlocal result
            if record is not None:
                value = self._encoding.decode(record)
            elif default is not None:
                value = self._encoding.copied(default)
            else:
                raise self._missing(key)
            result = function(value)
            return self._encoding.encode(key, result)

        await self._swap(key, change)
        return result

    # --- many records -------------------------------------------------------------------------

    async def list(self, prefix: str = "") -> dict[str, V]:
        """All records whose keys begin with `prefix`, in key order, as of one moment."""
        prefix = _plain_prefix(prefix)
        page = await self._records.scan(prefix, limit=None, max_bytes=None)
        if Feature.ORDERED not in self._records.features:
            page.records.sort(key=lambda record: record.key)
        values = {}
        for number, record in enumerate(page.records, start=1):
            values[shown_key(record.key)] = self._encoding.decode(record)
            if number % PAGE_RECORDS == 0:
                await asyncio.sleep(0)  # a long list lets others run
        return values

    async def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        until: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncGenerator[Entry[V], None]:
        """The records whose keys begin with `prefix`, in key order, in little memory.

        >>> async for entry in notes.scan("2026-"):
        ...     print(entry.key, entry.value.text)

        Reads page by page and holds nothing open in between. A record that exists throughout comes
        exactly once; one that is created or deleted meanwhile may come or not.

        Args:
            prefix: What the keys begin with.
            after: Start after this key, which need not exist.
            until: End before this key, or with `reverse`, start before it.
            limit: Maximum number of records.
            reverse: From the last key to the first.
        """
        async for page in self._pages(prefix, after, until, limit, reverse=reverse):
            for record in page:
                yield self._entry(record)

    async def keys(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        until: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncGenerator[str, None]:
        """The keys alone, with the arguments of `scan`; the values are not read."""
        async for page in self._pages(prefix, after, until, limit, reverse=reverse, values=False):
            for record in page:
                yield shown_key(record.key)

    async def groups(self, prefix: Key = _ALL_TUPLES) -> AsyncGenerator[Key, None]:
        """The tuples of one more part than `prefix` with which keys begin: each once, in order.

        >>> async for group in notes.groups(Key("diary")):
        ...     print(group.parts[-1], await notes.count(group))

        Takes a short read for each, however many records it has.
        """
        check_feature(self._records, Feature.ORDERED, "groups()")
        text, length = check_key(prefix), len(prefix.parts) + 1
        after = text
        while True:
            page = await self._records.scan(text, after=after, limit=1, values=False)
            if not page.records:
                return
            group = Key.of(page.records[0].key).first(length)
            yield group
            after = group.end

    async def count(self, prefix: str = "") -> int:
        """The number of records whose keys begin with `prefix`."""
        prefix = _plain_prefix(prefix)
        return await self._records.count(prefix)

    async def get_many(self, keys: Iterable[str]) -> dict[str, V]:
        """The values of `keys`, in their order. Keys that do not exist are left out."""
        wanted = list(dict.fromkeys(map(check_key, keys)))
        records = await self._records.read(wanted)
        found = filter(None, records)
        return {shown_key(record.key): self._encoding.decode(record) for record in found}

    async def set_many(
        self, values: Mapping[str, V], *, ttl: float | timedelta | None = None
    ) -> dict[str, int]:
        """Store all of `values`, or none. Returns their revisions."""
        check_feature(self._records, Feature.ATOMIC, "set_many()")
        revisions = await self.apply([Set(key, value, ttl) for key, value in values.items()])
        return dict(zip(values, revisions, strict=True))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Delete all of `keys`, or none. Returns how many records there were."""
        check_feature(self._records, Feature.ATOMIC, "delete_many()")
        deletions = [Delete(key) for key in dict.fromkeys(keys)]
        return sum(revision != 0 for revision in await self.apply(deletions))

    async def apply(
        self, writes: Sequence[Set[V] | Delete], *, checks: Mapping[str, int] | None = None
    ) -> Sequence[int]:
        """Do all of `writes`, or none, and return when they are durable.

        >>> await notes.apply([Set("b", Note(text="x"), expect=0), Delete("a")], checks={"c": 0})

        Args:
            writes: No two of the same key.
            checks: Revisions that other records must have, though they are not written; 0: absent.

        Returns:
            The new revision of each write, in their order; 0 for deleting what does not exist.

        Raises:
            RevisionConflict: A condition does not hold; nothing was stored.
            RecordInvalid: A value does not fit its model.
        """
        batch = self.batch(writes, checks=checks)
        if len(batch.writes) + len(batch.checks or {}) > 1:
            check_feature(self._records, Feature.ATOMIC, "more than one write or check at once")
        return await self._records.apply(batch.writes, checks=batch.checks)

    def check_feature(self, feature: Feature, what: str) -> None:
        """Raise NotSupported unless the store's engine has a feature, which `what` needs."""
        check_feature(self._records, feature, what)

    def batch(
        self, writes: Sequence[Set[V] | Delete], *, checks: Mapping[str, int] | None = None
    ) -> Batch:
        """What `apply` with the same arguments would store, for the provider's `apply_together`."""
        checked = {check_key(key): revision for key, revision in (checks or {}).items()}
        encoded = [self._encoded(write) for write in writes]
        if len({write.key for write in encoded}) < len(encoded):
            raise ValueError("Two of the writes have the same key; only one of them could be kept.")
        return Batch(self.namespace, encoded, checked or None)

    def _encoded(self, write: Set[V] | Delete) -> Write:
        key = check_key(write.key)
        if isinstance(write, Delete):
            return Write(key, None, expect=write.expect)
        expires = expires_at(self._records, write.ttl, self._clock)
        return Write(key, self._encoding.encode(key, write.value), expires, write.expect)

    def transaction(self) -> Transaction[V]:
        """Several reads and writes as one: when the block ends, all writes are stored, or none.

        >>> async with accounts.transaction() as transaction:
        ...     source, target = await transaction.get("a"), await transaction.get("b")
        ...     await transaction.set("a", Account(balance=source.balance - 10))
        ...     await transaction.set("b", Account(balance=target.balance + 10))

        Nothing is locked. If a record that the block has read was changed before its end, nothing
        is stored, and RevisionConflict is raised: run the block again.
        """
        check_feature(self._records, Feature.ATOMIC, "transaction()")
        return Transaction(self._records, self.namespace, self._encoding, self._clock)

    async def watch(
        self, prefix: str = "", *, after: int | None = None
    ) -> AsyncGenerator[Change[V], None]:
        """The changes of keys that begin with `prefix`, in the order of their revisions, forever.

        >>> async for change in notes.watch(after=cursor):
        ...     cursor = change.revision
        ...     break

        Each change is the latest state of its key; states in between may be left out. A record that
        expires is a change too. If you continue from the last revision seen, you miss nothing.

        Args:
            prefix: What the keys begin with.
            after: The last revision seen. 0: begin with all existing records. None: from now on.

        Raises:
            WatchExpired: `after` is so old that the store has forgotten deletions since then.
        """
        check_feature(self._records, Feature.WATCH, "watch()")
        prefix = _plain_prefix(prefix)
        since = (await self._records.changes(None)).cursor
        after = since if after is None else after
        walk = since if after == 0 else None
        while True:
            page = await self._records.changes(after, since=walk, prefix=prefix)
            for change in page.changes:
                value = None if change.record is None else self._encoding.decode(change.record)
                yield Change(shown_key(change.key), value, change.revision)
            after = page.cursor

    def check(self, record: Record) -> None:
        """Raise RecordInvalid if `record` does not fit the model."""
        self._encoding.decode(record)

    # --- internals ---------------------------------------------------------------------------

    async def _swap(self, key: str, change: Callable[[Record | None], bytes]) -> int:
        """Replace a record by what `change` returns; again, if another write came in between."""
        lock = self._locks.setdefault(key, asyncio.Lock())  # vanishes when nobody waits for it
        async with lock:
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
        until: str | None,
        limit: int | None,
        *,
        reverse: bool,
        values: bool = True,
    ) -> AsyncGenerator[Sequence[Record], None]:
        prefix = _plain_prefix(prefix)
        after = None if after is None else _plain_prefix(after)
        until = None if until is None else _plain_prefix(until)
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}; it must be 0 or more, or None for no limit.")
        if after is not None or reverse:
            check_feature(self._records, Feature.ORDERED, "after= and reverse=")
        if until is not None:
            check_feature(self._records, Feature.ORDERED, "until=")
        if reverse and until is not None:
            after, until = min(until, after or until), None
        left = math.inf if limit is None else limit
        while left > 0:
            size = int(min(PAGE_RECORDS, left))
            page = await self._records.scan(
                prefix, after=after, limit=size, reverse=reverse, values=values
            )
            records = page.records
            if until is not None and records and records[-1].key >= until:
                yield [record for record in records if record.key < until]
                return
            yield records
            if not page.more:
                return
            left -= len(page.records)
            after = page.records[-1].key

    def _entry(self, record: Record) -> Entry[V]:
        return Entry(
            shown_key(record.key),
            self._encoding.decode(record),
            record.revision,
            record.created,
            record.updated,
            record.expires,
        )

    def _missing(self, key: str) -> KeyMissing:
        return KeyMissing(f"{self.namespace!r} has no record {key!r}.", remedy="set() or create()")


def _plain_prefix(prefix: str) -> str:
    return "" if prefix == "" else check_key(prefix)
