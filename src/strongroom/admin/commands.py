"""What an operator asks of a node's storage: the same on a running node and on a directory at rest.

A command takes a provider and arguments that came as JSON, and yields values that go as JSON. A
`Progress` among them tells how far it is.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from strongroom.disk.header import PAGE_SIZE
from strongroom.errors import InvalidNamespace, KeyMissing, NotSupported
from strongroom.keys.master import MasterKey
from strongroom.settings import StorageSettings
from strongroom.storage.encoding import join, split
from strongroom.storage.records import (
    PAGE_RECORDS,
    OnProgress,
    Record,
    Write,
    check_key,
    check_namespace,
    system_clock,
)
from strongroom.storage.sqlite import doctor, tables
from strongroom.storage.sqlite.files import StoreFiles
from strongroom.storage.sqlite.provider import SqliteProvider
from strongroom.storage.sqlite.store import SqliteStore
from strongroom.threads import Threads

T = TypeVar("T")
Command = Callable[..., AsyncGenerator[Any, None]]

MAX_VERSION = 65535
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Progress(msgspec.Struct, frozen=True):
    """How much of something is done."""

    what: str
    done: int
    total: int


def run(provider: object, command: str, arguments: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """Run a command of `COMMANDS`.

    Raises:
        NotSupported: There is no such command, or the provider keeps no files.
    """
    if command not in COMMANDS:
        raise NotSupported(
            f"This node knows no command {command!r}.", remedy="the same version there"
        )
    if not isinstance(provider, SqliteProvider):
        raise NotSupported(
            "This needs a node that keeps its data in files.",
            remedy="FAME_STORAGE_PROFILE=encrypted-sqlite",
        )
    return COMMANDS[command](provider, **arguments)


# --- records ----------------------------------------------------------------------------------


class Item(msgspec.Struct, omit_defaults=True):
    """A record as the operator sees it. A value that is not in the record format is in base64."""

    key: str
    value: msgspec.Raw = msgspec.Raw()
    base64: str | None = None
    version: int | None = None
    revision: int | None = None
    created: datetime | None = None
    updated: datetime | None = None
    expires: datetime | None = None

    @classmethod
    def of(cls, record: Record, *, values: bool = True) -> Item:
        """The record, with its value or without."""
        item = cls(
            record.key,
            revision=record.revision,
            created=_time(record.created),
            updated=_time(record.updated),
            expires=None if record.expires is None else _time(record.expires),
        )
        if not values:
            return item
        if parts := split(record.value):
            item.version, text = parts
            item.value = msgspec.Raw(msgspec.json.format(text, indent=-1))
        else:
            item.base64 = base64.b64encode(record.value).decode()
        return item

    def write(self) -> Write:
        """What stores it.

        Raises:
            ValueError: It has no value, or one that is not as it should be.
        """
        check_key(self.key)
        version = self.version or 0
        if not 0 <= version <= MAX_VERSION:
            raise ValueError(f"version is {version}, and must be 0 to {MAX_VERSION}")
        if self.base64 is not None:
            value = base64.b64decode(self.base64, validate=True)
        elif not self.value:
            raise ValueError("there is neither a value nor base64")
        else:
            value = join(version, msgspec.json.format(bytes(self.value), indent=-1))
        expires = (
            None if self.expires is None else (self.expires - EPOCH) // timedelta(microseconds=1)
        )
        return Write(self.key, value, expires)


async def _ls(provider: SqliteProvider) -> AsyncGenerator[Any, None]:
    for namespace in await provider.namespaces():
        store = await provider.open(namespace)
        size = provider.files.path(namespace).stat().st_size
        yield {"namespace": namespace, "records": await store.count(), "bytes": size}


async def _stats(provider: SqliteProvider, namespace: str) -> AsyncGenerator[Any, None]:
    store = await _existing(provider, namespace)
    head = await store.connections.run_on_writer(tables.head)
    entry = provider.files.keystore.entries[namespace]
    size = provider.files.path(namespace).stat().st_size
    yield {
        "namespace": namespace,
        "records": await store.count(),
        "revision": head.revision,
        "bytes": size,
        "key": entry.key.id,
        "state": entry.state.value,
        "key_created": _time(entry.key.created),
    }


async def _get(provider: SqliteProvider, namespace: str, key: str) -> AsyncGenerator[Any, None]:
    store = await _existing(provider, namespace)
    check_key(key)
    [record] = await store.read([key])
    if record is None:
        raise KeyMissing(
            f"{namespace!r} has no record {key!r}.", remedy=f"strongroom store scan {namespace}"
        )
    yield Item.of(record)


async def _put(
    provider: SqliteProvider, namespace: str, key: str, text: str, version: int | None = None
) -> AsyncGenerator[Any, None]:
    """Store JSON, as the version of the model that wrote what is there unless one is given."""
    store = await _writable(provider, namespace)
    check_key(key)
    [old] = await store.read([key])
    parts = split(old.value) if old else None
    item = Item(key, msgspec.Raw(text.encode()))
    item.version = version if version is not None else parts[0] if parts else 0
    write = item.write()
    expires = old.expires if old else None
    [revision] = await store.apply([Write(key, write.value, expires)])
    yield {"key": key, "revision": revision}


async def _delete(
    provider: SqliteProvider, namespace: str, keys: list[str]
) -> AsyncGenerator[Any, None]:
    await _existing(provider, namespace)
    store = await _writable(provider, namespace)
    for key in keys:
        check_key(key)
        [revision] = await store.apply([Write(key, None)])
        yield {"key": key, "deleted": revision > 0}


async def _scan(
    provider: SqliteProvider,
    namespace: str,
    *,
    prefix: str = "",
    after: str | None = None,
    limit: int | None = None,
    reverse: bool = False,
    values: bool = True,
) -> AsyncGenerator[Any, None]:
    store = await _existing(provider, namespace)
    more = True
    while more and limit != 0:
        size = PAGE_RECORDS if limit is None else min(limit, PAGE_RECORDS)
        page = await store.scan(prefix, after=after, limit=size, reverse=reverse, values=values)
        for record in page.records:
            yield Item.of(record, values=values)
        more = page.more
        if limit is not None:
            limit -= len(page.records)
        after = page.records[-1].key if page.records else None


async def _watch(
    provider: SqliteProvider, namespace: str, prefix: str = "", after: int | None = None
) -> AsyncGenerator[Any, None]:
    store = await _existing(provider, namespace)
    cursor = (await store.changes(None)).cursor if after is None else after
    while True:
        changes = await store.changes(cursor, prefix=prefix)
        for change in changes.changes:
            if change.record is None:
                yield {"key": change.key, "revision": change.revision, "deleted": True}
            else:
                yield Item.of(change.record)
        cursor = changes.cursor


async def _export(provider: SqliteProvider, namespace: str) -> AsyncGenerator[Any, None]:
    """All records as of one moment. The audit log knows of it before the first one leaves."""
    store = await _existing(provider, namespace)
    await provider.note("exported", namespace)
    async with contextlib.aclosing(store.snapshot()) as pages:
        async for records in pages:
            for record in records:
                yield Item.of(record)


async def _import(
    provider: SqliteProvider, namespace: str, records: list[dict[str, Any]]
) -> AsyncGenerator[Any, None]:
    """Store records, all or none; the caller has checked them."""
    store = await _writable(provider, namespace)
    writes = [msgspec.convert(record, Item).write() for record in records]
    old = await store.read([write.key for write in writes])
    await store.apply(writes)
    yield {"stored": len(writes), "replaced": sum(record is not None for record in old)}


async def _drop(provider: SqliteProvider, namespace: str) -> AsyncGenerator[Any, None]:
    await _existing(provider, namespace)
    await provider.drop(namespace)
    yield {"namespace": namespace, "dropped": True}


async def _existing(provider: SqliteProvider, namespace: str) -> SqliteStore:
    if namespace not in await provider.namespaces():
        raise InvalidNamespace(
            f"There is no namespace {namespace!r}.", remedy="strongroom store ls"
        )
    return await provider.open(namespace)


async def _writable(provider: SqliteProvider, namespace: str) -> SqliteStore:
    if namespace.startswith("__"):
        raise InvalidNamespace(f"{namespace} is the node's own, and is not written by hand.")
    check_namespace(namespace, await provider.namespaces())
    return await provider.open(namespace)


def _time(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


# --- keys, audit log, inspection --------------------------------------------------------------


async def _rotate_master(provider: SqliteProvider, master_key: str) -> AsyncGenerator[Any, None]:
    master = MasterKey(master_key)
    await provider.change_master(master)
    yield {"fingerprint": master.fingerprint, "generation": provider.files.keystore.generation}


async def _rotate_data(
    provider: SqliteProvider, namespaces: list[str] | None = None
) -> AsyncGenerator[Any, None]:
    rotated: list[str] = []

    async def rotate(tell: OnProgress) -> None:
        rotated.extend(await provider.rotate(namespaces, tell))

    async with contextlib.aclosing(_followed(rotate)) as progress:
        async for step in progress:
            yield step
    for namespace in rotated:
        yield {"namespace": namespace, "key": provider.files.keystore.entries[namespace].key.id}


async def _key_status(provider: SqliteProvider) -> AsyncGenerator[Any, None]:
    """What is under each key: the data in use by namespace, and the keys that were retired."""
    keystore = provider.files.keystore
    for namespace, entry in sorted(keystore.entries.items()):
        store = await provider.open(namespace)
        head = await store.connections.run_on_writer(tables.head)
        size = provider.files.path(namespace).stat().st_size
        for key in entry.keys:
            used = key.file_id == head.file_id
            yield {
                "namespace": namespace,
                "key": key.id,
                "state": entry.state.value if used else "next",
                "created": _time(key.created),
                "records": await store.count() if used else 0,
                "bytes": size if used else 0,
                "pages": size // PAGE_SIZE if used else 0,
            }
    for retired in keystore.retired:
        yield {
            "namespace": retired.namespace,
            "key": retired.key.id,
            "state": "retired",
            "created": _time(retired.key.created),
            "records": 0,
            "bytes": 0,
            "pages": 0,
        }


async def _audit_show(provider: SqliteProvider) -> AsyncGenerator[Any, None]:
    for line in await provider.audit():
        shown = {"number": line.number, "time": _time(line.time), "event": line.event}
        yield {**shown, "namespace": line.namespace, "detail": line.detail}


async def _audit_verify(provider: SqliteProvider) -> AsyncGenerator[Any, None]:
    yield {"lines": await provider.verify_audit()}


async def _doctor(provider: SqliteProvider) -> AsyncGenerator[Any, None]:
    findings: list[doctor.Finding] = []

    async def examine(tell: OnProgress) -> None:
        findings.extend(await doctor.examine_running(provider, tell))

    async with contextlib.aclosing(_followed(examine)) as progress:
        async for step in progress:
            yield step
    for finding in findings:
        yield finding


async def doctor_at_rest(settings: StorageSettings) -> AsyncGenerator[Any, None]:
    """What `doctor` yields, for a directory that no node uses."""
    encrypts = settings.profile == "encrypted-sqlite"
    files = StoreFiles(settings, system_clock, threads := Threads(1), encrypts=encrypts)
    findings: list[doctor.Finding] = []

    async def examine(tell: OnProgress) -> None:
        findings.extend(await threads.run(doctor.examine_at_rest, files, tell))

    async with contextlib.aclosing(_followed(examine)) as progress:
        async for step in progress:
            yield step
    for finding in findings:
        yield finding


async def _followed(
    work: Callable[[OnProgress], Awaitable[None]],
) -> AsyncGenerator[Progress, None]:
    """Do something and tell how far it is; it ends when nobody listens any more."""
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Progress | None] = asyncio.Queue()

    def tell(what: str, done: int, total: int) -> None:
        if working.done():  # cancelled, and a thread of it still reads
            raise RuntimeError("nobody wants to know any more")
        loop.call_soon_threadsafe(told.put_nowait, Progress(what, done, total))

    working = asyncio.ensure_future(work(tell))
    working.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (progress := await told.get()) is not None:
            yield progress
        await working
    finally:
        working.cancel()
        await asyncio.wait([working])


COMMANDS: dict[str, Command] = {
    "store.ls": _ls,
    "store.stats": _stats,
    "store.get": _get,
    "store.put": _put,
    "store.delete": _delete,
    "store.scan": _scan,
    "store.watch": _watch,
    "store.export": _export,
    "store.import": _import,
    "store.drop": _drop,
    "key.rotate-master": _rotate_master,
    "key.rotate-data": _rotate_data,
    "key.status": _key_status,
    "audit.show": _audit_show,
    "audit.verify": _audit_verify,
    "doctor": _doctor,
}
