"""Commands on records: list, read, write, watch, export, import, drop. Any provider can do them."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec

from strongroom.admin.command import EPOCH, Administered, Command, Progress, utc
from strongroom.errors import InvalidNamespace, KeyMissing, NotSupported, StorageError
from strongroom.storage import opaque
from strongroom.storage.encoding import join, split
from strongroom.storage.provider import OWN_PREFIX, SHARED_PREFIX, StorageProvider
from strongroom.storage.records import (
    PAGE_RECORDS,
    Feature,
    Record,
    RecordStore,
    Write,
    check_namespace,
    stored_key,
)
from strongroom.storage.sqlite.provider import SqliteProvider
from strongroom.storage.sqlite.store import SqliteStore

MAX_VERSION = 65535
EMPTY = {"empty": True}
"""The only line of the export of an empty namespace."""


class ExportedRecord(msgspec.Struct, omit_defaults=True):
    """A record as an operator sees it. A value that is no JSON is in `base64`.

    Of a store of bytes, `owner` says who wrote them.
    """

    key: str
    value: msgspec.Raw = msgspec.Raw()
    base64: str | None = None
    owner: str | None = None
    version: int | None = None
    revision: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    created: datetime | None = None
    updated: datetime | None = None
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    deleted: bool = False
    more: bool = False
    """This is a line of an export, and not its last: if no other comes, the export was cut."""

    @classmethod
    def of(cls, record: Record, *, values: bool = True) -> ExportedRecord:
        """Make one from a stored record, with or without its value."""
        exported = cls(
            record.key,
            revision=record.revision,
            created=utc(record.created),
            updated=utc(record.updated),
            expires=None if record.expires is None else utc(record.expires),
        )
        if not values:
            return exported
        if parts := split(record.value):
            exported.version, text = parts
            exported.value = msgspec.Raw(msgspec.json.format(text, indent=-1))
        else:
            exported.owner, data = opaque.split(record.value) or (None, record.value)
            exported.base64 = base64.b64encode(data).decode()
        return exported

    def write(self) -> Write:
        """The write that stores this record.

        Raises:
            ValueError: The record has no value, or its version or base64 is not valid.
            InvalidKey: The key is not allowed.
        """
        stored_key(self.key)
        version = self.version or 0
        if not 0 <= version <= MAX_VERSION:
            raise ValueError(f"version is {version}, and must be 0 to {MAX_VERSION}")
        if self.base64 is not None:
            value = base64.b64decode(self.base64, validate=True)
            value = value if self.owner is None else opaque.header(self.owner) + value
        elif not self.value:
            raise ValueError("it has neither a value nor base64")
        else:
            value = join(version, msgspec.json.format(bytes(self.value), indent=-1))
        expires = (
            None if self.expires is None else (self.expires - EPOCH) // timedelta(microseconds=1)
        )
        return Write(self.key, value, expires)


@Command
async def ls(node: Administered) -> AsyncGenerator[Any, None]:
    """List the namespaces."""
    provider = await node.provider()
    for namespace in await provider.namespaces():
        store = await provider.open(namespace)
        yield {"namespace": namespace, "records": await store.count(), **_file(provider, namespace)}


@Command
async def stats(node: Administered, *, namespace: str) -> AsyncGenerator[Any, None]:
    """Describe a namespace: its size, and the newest revision of a store that can be watched."""
    store = await _existing(node, namespace)
    provider = await node.provider()
    found = {"namespace": namespace, "records": await store.count()}
    if Feature.WATCH in store.features:
        found["revision"] = (await store.changes(None)).cursor
    found |= _file(provider, namespace)
    if isinstance(provider, SqliteProvider):
        entry = provider.files.keystore.entries[namespace]
        found |= {"key": entry.key.id, "state": entry.state.value}
        found["key_created"] = utc(entry.key.created)
    yield found


@Command
async def get(node: Administered, *, namespace: str, key: str) -> AsyncGenerator[Any, None]:
    """Read one record."""
    store = await _existing(node, namespace)
    key = stored_key(key)
    [record] = await store.read([key])
    if record is None:
        raise KeyMissing(
            f"{namespace!r} has no record {key!r}.", remedy=f"strongroom store scan {namespace}"
        )
    yield ExportedRecord.of(record)


@Command
async def put(
    node: Administered, *, namespace: str, key: str, text: str, version: int | None = None
) -> AsyncGenerator[Any, None]:
    """Store JSON. Without `version` it gets the model version of the record that it replaces."""
    store = await _writable(node, namespace)
    key = stored_key(key)
    [old] = await store.read([key])
    parts = split(old.value) if old else None
    record = ExportedRecord(key, msgspec.Raw(text.encode()))
    record.version = version if version is not None else parts[0] if parts else 0
    expires = old.expires if old else None
    [revision] = await store.apply([Write(key, record.write().value, expires)])
    yield {"key": key, "revision": revision}


@Command
async def delete(
    node: Administered, *, namespace: str, keys: list[str]
) -> AsyncGenerator[Any, None]:
    """Delete records, and say of each whether it existed."""
    await _existing(node, namespace)
    store = await _writable(node, namespace)
    for key in map(stored_key, keys):
        [revision] = await store.apply([Write(key, None)])
        yield {"key": key, "deleted": revision > 0}


@Command
async def scan(
    node: Administered,
    *,
    namespace: str,
    prefix: str = "",
    after: str | None = None,
    limit: int | None = None,
    reverse: bool = False,
    values: bool = True,
) -> AsyncGenerator[Any, None]:
    """Read records in the order of their keys."""
    store = await _existing(node, namespace)
    if reverse:
        _require(store, Feature.ORDERED)
    more = True
    while more and limit != 0:
        size = PAGE_RECORDS if limit is None else min(limit, PAGE_RECORDS)
        page = await store.scan(prefix, after=after, limit=size, reverse=reverse, values=values)
        for record in page.records:
            yield ExportedRecord.of(record, values=values)
        more = page.more
        if limit is not None:
            limit -= len(page.records)
        after = page.records[-1].key if page.records else None


@Command
async def watch(
    node: Administered, *, namespace: str, prefix: str = "", after: int | None = None
) -> AsyncGenerator[Any, None]:
    """Report each change after the revision `after`, or from now on. It never ends by itself."""
    store = await _existing(node, namespace)
    _require(store, Feature.WATCH)
    cursor = (await store.changes(None)).cursor if after is None else after
    while True:
        changes = await store.changes(cursor, prefix=prefix)
        for change in changes.changes:
            if change.record is None:
                yield ExportedRecord(change.key, revision=change.revision, deleted=True)
            else:
                yield ExportedRecord.of(change.record)
        cursor = changes.cursor


@Command
async def export(node: Administered, *, namespace: str) -> AsyncGenerator[Any, None]:
    """Read all records as of one moment. The audit log has its line before the first one leaves."""
    store = await _existing(node, namespace)
    provider = await node.provider()
    if isinstance(provider, SqliteProvider):
        await provider.note("exported", namespace)
    async for item in exported(_snapshot(store), namespace, await store.count()):
        yield item


async def exported(
    pages: AsyncGenerator[Sequence[Record], None], namespace: str, total: int
) -> AsyncGenerator[Any, None]:
    """The lines of an export of some pages of records, and its progress."""
    done = 0
    last: ExportedRecord | None = None
    async with contextlib.aclosing(pages):
        async for page in pages:
            for record in page:
                if last is not None:
                    last.more = True
                    yield last
                last = ExportedRecord.of(record)
            done += len(page)
            yield Progress(namespace, done, total)
    yield EMPTY if last is None else last


async def _snapshot(store: RecordStore) -> AsyncGenerator[Sequence[Record], None]:
    if not isinstance(store, SqliteStore):  # a scan without a limit is one moment, too
        yield (await store.scan(limit=None, max_bytes=None)).records
        return
    async with contextlib.aclosing(store.snapshot()) as pages:
        async for page in pages:
            yield page


@Command
async def import_(
    node: Administered, *, namespace: str, records: list[ExportedRecord]
) -> AsyncGenerator[Any, None]:
    """Store records that the caller has checked: all or none, if the store can do that."""
    store = await _writable(node, namespace)
    writes = [record.write() for record in records]
    if any(write.expires is not None for write in writes):
        _require(store, Feature.TTL)
    old = await store.read([write.key for write in writes])
    atomic = Feature.ATOMIC in store.features
    for batch in [writes] if atomic else [[write] for write in writes]:
        await store.apply(batch)
    yield {"stored": len(writes), "replaced": sum(record is not None for record in old)}


@Command
async def compact(node: Administered, *, namespaces: list[str]) -> AsyncGenerator[Any, None]:
    """Rewrite files without the space that deleted records have left; all if none is named."""
    provider = await node.provider(writing=True)
    if not isinstance(provider, SqliteProvider):
        raise NotSupported(
            f"The profile {provider.settings.profile} keeps no files.",
            remedy="FAME_STORAGE_PROFILE=encrypted-sqlite, or sqlite",
        )
    chosen = namespaces or await provider.namespaces()
    failed: StorageError | None = None
    for done, namespace in enumerate(chosen):
        yield Progress(namespace, done, len(chosen))
        try:
            store = await _existing(node, namespace)
            before = _file(provider, namespace)["bytes"]
            assert isinstance(store, SqliteStore)
            await store.compact()
        except StorageError as error:
            failed = failed or error  # the others are compacted nevertheless
        else:
            yield {"namespace": namespace, "before": before, **_file(provider, namespace)}
    if failed is not None:
        raise failed


@Command
async def drop(node: Administered, *, namespace: str) -> AsyncGenerator[Any, None]:
    """Delete a namespace."""
    await _existing(node, namespace)
    await (await node.provider(writing=True)).drop(namespace)
    yield {"namespace": namespace, "dropped": True}


async def _existing(node: Administered, namespace: str) -> RecordStore:
    provider = await node.provider()
    if namespace not in await provider.namespaces():
        raise InvalidNamespace(
            f"There is no namespace {namespace!r}.", remedy="strongroom store ls"
        )
    return await provider.open(namespace)


async def _writable(node: Administered, namespace: str) -> RecordStore:
    if namespace.startswith(OWN_PREFIX) and not namespace.startswith(SHARED_PREFIX):
        raise InvalidNamespace(
            f"{namespace} is the node's own, and cannot be written by hand.",
            remedy="strongroom store ls, which lists the others",
        )
    provider = await node.provider(writing=True)
    check_namespace(namespace, await provider.namespaces())
    return await provider.open(namespace)


def _require(store: RecordStore, feature: Feature) -> None:
    if feature not in store.features:
        raise NotSupported(
            f"This needs a store that declares {feature.name}; {type(store).__name__} does not.",
            remedy="a storage profile that has this feature",
        )


def _file(provider: StorageProvider, namespace: str) -> dict[str, int]:
    """The size of the namespace's file, if the provider keeps files."""
    if not isinstance(provider, SqliteProvider):
        return {}
    return {"bytes": provider.files.path(namespace).stat().st_size}
