"""Several providers share a space: one order of writes, and watchers that miss nothing."""

from __future__ import annotations

import asyncio
import os
import random

import asyncpg
import pytest

from strongroom.errors import (
    EngineRefused,
    EngineUnsuitable,
    InvalidNamespace,
    RevisionConflict,
    StoreForked,
    StoreMissing,
    StoreRolledBack,
)
from strongroom.storage import Record, RecordStore, Write
from support.postgres import new_space, opened, server

WRITERS = 3
KEYS = [f"key-{number}" for number in range(12)]


async def write_anything(store: RecordStore, chance: random.Random) -> list[tuple[int, str, int]]:
    """Write on conditions and without. Returns what was acknowledged: revision, key, expected."""
    done = []
    for _ in range(60):
        key = chance.choice(KEYS)
        [record] = await store.read([key])
        found = record.revision if record else 0
        value = None if chance.random() < 0.3 else b"v"
        expect = found if chance.random() < 0.7 else None
        try:
            [revision] = await store.apply([Write(key, value, expect=expect)])
        except RevisionConflict:
            continue
        if revision:
            done.append((revision, key, -1 if expect is None else expect))
    return done


async def test_a_watcher_of_several_writers_sees_each_last_state_in_order() -> None:
    space = new_space()
    async with (
        opened(server().url, space=space) as here,
        opened(server().url, space=space) as there,
        opened(server().url, space=space) as watching,
    ):
        stores = [await provider.open("shared") for provider in (here, there, here)]
        watched = await watching.open("shared")
        writing = asyncio.gather(
            *(write_anything(store, random.Random(n)) for n, store in enumerate(stores))
        )
        cursor = 0
        seen: dict[str, Record | None] = {}
        order: list[int] = []
        end = Write("end", b"")
        writing.add_done_callback(lambda _: asyncio.create_task(stores[0].apply([end])))
        while "end" not in seen:
            changes = await watched.changes(cursor)
            cursor = changes.cursor
            seen |= {change.key: change.record for change in changes.changes}
            order += [change.revision for change in changes.changes]
        assert order == sorted(set(order))
        present = {key: record for key, record in seen.items() if record is not None}
        page = await watched.scan(limit=None, max_bytes=None)
        assert present == {record.key: record for record in page.records}
        check_order(sorted(each for done in await writing for each in done))


def check_order(acknowledged: list[tuple[int, str, int]]) -> None:
    """Every condition held in the order of the revisions; deletions count as absent."""
    assert len({revision for revision, _, _ in acknowledged}) == len(acknowledged)
    last: dict[str, int] = {}
    for revision, key, expected in acknowledged:
        assert expected in {-1, 0, last.get(key, 0)}
        last[key] = revision


async def test_a_watcher_hears_of_another_process_before_it_looks_for_itself() -> None:
    space = new_space()
    async with (
        opened(server().url, space=space) as here,
        opened(server().url, space=space) as there,
    ):
        store, watched = await here.open("shared"), await there.open("shared")
        here._hints.poll_seconds = there._hints.poll_seconds = 3600  # only a hint can wake it
        await store.apply([Write("a", b"1")])
        cursor = (await watched.changes(None)).cursor
        async with asyncio.timeout(10):
            while there._hints._connection is None or here._hints._connection is None:
                await asyncio.sleep(0.01)
            watch = asyncio.create_task(watched.changes(cursor))
            await asyncio.wait([watch], timeout=0.05)
            await store.apply([Write("b", b"2")])
            changes = await watch
        assert [change.key for change in changes.changes] == ["b"]


async def test_who_holds_a_dropped_namespace_cannot_write_into_its_successor() -> None:
    space = new_space()
    async with (
        opened(server().url, space=space) as here,
        opened(server().url, space=space) as there,
    ):
        held = await here.open("notes")
        await held.apply([Write("a", b"1")])
        await there.drop("notes")
        store = await there.open("notes")
        with pytest.raises(StoreMissing, match="was dropped"):
            await held.apply([Write("a", b"2")])
        with pytest.raises(StoreMissing, match="was dropped"):
            await held.changes(0)
        assert await store.count() == 0


async def test_two_processes_cannot_create_names_that_differ_only_in_case() -> None:
    space = new_space()
    async with (
        opened(server().url, space=space) as here,
        opened(server().url, space=space) as there,
    ):
        await here.open("notes")
        with pytest.raises(InvalidNamespace, match="differs only in case"):
            await there.open("Notes")


async def test_a_server_that_lost_acknowledged_writes_gets_no_more() -> None:
    space = new_space()
    async with opened(server().url, space=space) as provider:
        store = await provider.open("notes")
        for number in range(5):
            await store.apply([Write("a", str(number).encode())])
        connection = await asyncpg.connect(server().url)
        await connection.execute(f'UPDATE "{space}".namespace SET revision = 2')
        await connection.close()
        for _ in range(2):
            with pytest.raises(StoreRolledBack, match="has lost writes"):
                await store.apply([Write("b", b"1")])
        assert await store.read(["b"]) == [None]


@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ("default_transaction_isolation = 'serializable'", "default_transaction_isolation"),
        ("synchronous_commit = off", ""),
    ],
)
async def test_defaults_of_a_role_do_not_weaken_what_is_promised(
    setting: str, refused: str
) -> None:
    space, role = new_space(), new_space()
    connection = await asyncpg.connect(server().url)
    async with opened(server().url, space=space):
        pass
    await connection.execute(f"CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET {setting}")
    await grant(connection, space, role)
    async with opened(server().url.replace("strongroom@", f"{role}@"), space=space) as provider:
        store = await provider.open("notes")
        if refused:
            with pytest.raises(EngineUnsuitable, match=refused):
                await store.apply([Write("a", b"1")])
        else:
            await store.apply([Write("a", b"1")])
    await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await connection.close()


async def grant(connection: object, space: str, role: str) -> None:
    """What docs/postgres.md says that the program's role needs."""
    assert isinstance(connection, asyncpg.Connection)
    await connection.execute(
        f'GRANT USAGE ON SCHEMA "{space}" TO {role};'
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{space}" TO {role}'
    )


async def test_a_role_that_may_not_create_the_space_is_refused() -> None:
    role = new_space()
    connection = await asyncpg.connect(server().url)
    await connection.execute(f"CREATE ROLE {role} LOGIN")
    with pytest.raises(EngineRefused, match="permission denied"):
        async with opened(server().url.replace("strongroom@", f"{role}@"), space=new_space()):
            pass
    await connection.execute(f"DROP ROLE {role}")
    await connection.close()


async def test_a_forked_process_is_refused() -> None:
    async with opened(server().url, space=new_space()) as provider:
        store = await provider.open("notes")
        child = os.fork()
        if child == 0:
            try:
                store.read(["a"]).send(None)
            except StoreForked:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
