"""What a server can do to sealed records, and how a node notices it.

The engine here is the provider `memory`, of which the tests are the operator: the layer knows no
more of PostgreSQL. tests/sealed/test_encrypted_postgres.py looks into a real server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from strongroom.errors import (
    ForeignStore,
    KeystoreOlder,
    StorageError,
    StoreDamaged,
    StoreMissing,
    StoreRolledBack,
    WrongMasterKey,
)
from strongroom.settings import StorageSettings
from strongroom.storage import MemoryProvider, Record, RecordStore, Write
from strongroom.storage.sealed.provider import SealedProvider
from strongroom.testing.trial import ManualClock
from support.providers import MASTER_KEY

SETTINGS = StorageSettings(profile="sealed", master_key=MASTER_KEY)


@dataclass
class Server:
    """An engine that outlives the providers on it."""

    engine: MemoryProvider
    clock: ManualClock

    @asynccontextmanager
    async def node(self, settings: StorageSettings = SETTINGS) -> AsyncIterator[SealedProvider]:
        """Another process that works with the space."""
        engine = self.engine

        class Lasting(SealedProvider):
            def __init__(self) -> None:
                super().__init__(settings, engine.clock)
                self._inner = engine

        Lasting.engine = MemoryProvider
        provider = Lasting()
        await provider.start()
        yield provider

    async def table(self, which: int = 0) -> RecordStore:
        """The namespace of the engine that was made first, second and so on."""
        names = [name for name in self.engine._stores if name != "keystore"]
        return await self.engine.open(names[which])

    async def rows(self, which: int = 0) -> list[Record]:
        """All its records, in the order of their revisions."""
        page = await (await self.table(which)).scan(limit=None, max_bytes=None)
        return sorted(page.records, key=lambda record: record.revision)


@pytest.fixture
def server() -> Server:
    clock = ManualClock()
    return Server(MemoryProvider(clock=clock), clock)


async def test_the_engine_sees_no_name_and_no_value(server: Server) -> None:
    async with server.node() as node:
        store = await node.open("customers")
        await store.apply([Write("ada@example.org", b"owes ten pounds")])

    everything = repr([await server.rows(), await server.engine.namespaces()])
    for secret in ("customers", "ada", "example.org", "pounds"):
        assert secret not in everything


@pytest.mark.parametrize("byte", [0, 1, 5, 12, 40, 60, 99, -1])
async def test_a_changed_byte_is_noticed(server: Server, byte: int) -> None:
    async with server.node() as node:
        store = await node.open("notes")
        await store.apply([Write("a", b"x" * 30)])
        [row] = await server.rows()
        changed = bytearray(row.value)
        changed[byte] ^= 1
        await (await server.table()).apply([Write(row.key, bytes(changed))])

        with pytest.raises((StoreDamaged, ForeignStore)):
            await store.read(["a"])
        with pytest.raises((StoreDamaged, ForeignStore)):
            await store.scan()


@pytest.mark.parametrize("value", [b"", b"plain", b'{"x": 1}' * 50])
async def test_a_value_that_was_never_sealed_is_noticed(server: Server, value: bytes) -> None:
    async with server.node() as node:
        store = await node.open("notes")
        await store.apply([Write("a", b"1")])
        [row] = await server.rows()
        await (await server.table()).apply([Write(row.key, value)])

        with pytest.raises(StoreDamaged):
            await store.read(["a"])


async def test_another_records_value_is_noticed(server: Server) -> None:
    async with server.node() as node:
        store = await node.open("notes")
        await store.apply([Write("a", b"1"), Write("b", b"2")])
        first, second = await server.rows()
        await (await server.table()).apply([Write(first.key, second.value)])

        with pytest.raises(StoreDamaged):
            await store.read(["a"])


async def test_another_namespaces_record_is_noticed(server: Server) -> None:
    async with server.node() as node:
        for name in ("notes", "bills"):
            await (await node.open(name)).apply([Write("a", name.encode())])
        [note], [bill] = await server.rows(0), await server.rows(1)
        await (await server.table(0)).apply([Write(note.key, bill.value)])
        await (await server.table(1)).apply([Write(note.key, note.value)])

        with pytest.raises(ForeignStore):
            await (await node.open("notes")).read(["a"])
        with pytest.raises(StoreDamaged):
            await (await node.open("bills")).scan()


@pytest.mark.parametrize("how", ["read", "scan", "snapshot", "changes", "modify"])
async def test_an_older_value_is_noticed_in_every_answer(server: Server, how: str) -> None:
    async with server.node() as node:
        store = await node.open("notes")
        await store.apply([Write("a", b"old")])
        [old] = await server.rows()
        await store.apply([Write("a", b"new")])
        [revision] = await (await server.table()).apply([Write(old.key, old.value)])

        with pytest.raises(StoreRolledBack):
            match how:
                case "read":
                    await store.read(["a"])
                case "scan":
                    await store.scan()
                case "snapshot":
                    await store.scan(limit=None, max_bytes=None)
                case "changes":
                    await store.changes(revision - 1)
                case _:
                    await store.apply([Write("a", b"more")])


@pytest.mark.parametrize("has_read_it", [True, False])
async def test_a_deleted_record_that_comes_back_is_noticed(
    server: Server,
    has_read_it: bool,  # noqa: FBT001  # pytest passes it by name
) -> None:
    async with server.node() as first:
        await (await first.open("notes")).apply([Write("a", b"1")])
    [old] = await server.rows()
    server.clock.advance(3600)
    async with server.node() as second:
        store = await second.open("notes")
        if has_read_it:
            await store.read(["a"])
        await store.apply([Write("a", None)])
        await (await server.table()).apply([Write(old.key, old.value)])

        with pytest.raises(StoreRolledBack):
            await store.read(["a"])


async def test_an_expiry_that_the_server_lengthens_is_not_believed(server: Server) -> None:
    async with server.node() as node:
        store = await node.open("notes")
        await store.apply([Write("a", b"1", server.clock() + 1_000_000)])
        [row] = await server.rows()
        await (await server.table()).apply([Write(row.key, row.value)])  # which never expires
        server.clock.advance(2)

        assert await store.read(["a"]) == [None]
        assert (await store.scan()).records == []
        await store.apply([Write("a", b"2")])
        [found] = await store.read(["a"])
        assert found is not None
        assert found.value == b"2"
        assert found.created == server.clock()


async def test_an_older_keystore_is_noticed_by_who_has_seen_a_newer_one(server: Server) -> None:
    async with server.node() as node:
        await node.open("notes")
        keystore = await server.engine.open("keystore")
        [old] = await keystore.read(["keystore"])
        await node.open("bills")
        assert old is not None
        await keystore.apply([Write("keystore", old.value)])

        with pytest.raises(KeystoreOlder):
            await node.namespaces()


async def test_an_older_keystore_is_noticed_where_it_lacks_a_namespace(server: Server) -> None:
    async with server.node() as node:
        await node.open("notes")
        keystore = await server.engine.open("keystore")
        [old] = await keystore.read(["keystore"])
        await node.open("bills")
    assert old is not None
    await keystore.apply([Write("keystore", old.value)])

    async with server.node() as another:
        with pytest.raises(KeystoreOlder):
            await another.open("bills")


async def test_a_keystore_that_is_gone_or_changed_is_noticed(server: Server) -> None:
    async with server.node() as node:
        await node.open("notes")
        keystore = await server.engine.open("keystore")
        [row] = await keystore.read(["keystore"])
        assert row is not None
        await keystore.apply([Write("keystore", row.value[:-1] + b"\0")])
        with pytest.raises(StorageError):
            await node.namespaces()
        await keystore.apply([Write("keystore", None)])
        with pytest.raises(KeystoreOlder):
            await node.namespaces()


async def test_a_space_without_its_keystore_is_not_begun_anew(server: Server) -> None:
    async with server.node() as node:
        await node.open("notes")
    await (await server.engine.open("keystore")).apply([Write("keystore", None)])

    with pytest.raises(KeystoreOlder):
        async with server.node() as another:
            await another.open("notes")


async def test_a_namespace_that_the_server_has_lost_is_noticed(server: Server) -> None:
    async with server.node() as node:
        await node.open("notes")
        [name] = [name for name in await server.engine.namespaces() if name != "keystore"]
        await server.engine.drop(name)

        with pytest.raises(StoreMissing):
            await node.open("notes")


@pytest.mark.parametrize("key", ["ab" * 32, "a passphrase of some words"])
async def test_another_master_key_stops_the_node(server: Server, key: str) -> None:
    async with server.node() as node:
        await node.open("notes")

    with pytest.raises(WrongMasterKey):
        async with server.node(StorageSettings(profile="sealed", master_key=key)):
            pass


async def test_dropping_destroys_the_data_key(server: Server) -> None:
    async with server.node() as node:
        await (await node.open("notes")).apply([Write("a", b"1")])
        [row] = await server.rows()
        await node.drop("notes")
        store = await node.open("notes")
        await (await server.table()).apply([Write(row.key, row.value)])

        with pytest.raises(ForeignStore):
            await store.read(["a"])


async def test_two_nodes_read_what_the_other_wrote(server: Server) -> None:
    async with server.node() as first, server.node() as second:
        mine = await first.open("notes")
        theirs = await second.open("notes")
        for number in range(5):
            await mine.apply([Write("a", b"%d" % number)])
            [found] = await theirs.read(["a"])
            assert found is not None
            assert found.value == b"%d" % number
            await theirs.apply([Write("a", b"theirs")])
        assert [r.value for r in (await mine.scan()).records] == [b"theirs"]
