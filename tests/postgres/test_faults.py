"""A server that dies or falls silent: nothing is lost, and nothing is stored twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from strongroom.errors import EngineUnreachable, StoreUnavailable
from strongroom.storage import RecordStore, Write
from support.fabrics import eventually
from support.postgres import PostgresServer, new_space, opened, server
from support.proxy import Proxy, proxied

CALLERS = 32


async def increment(store: RecordStore, key: str, done: asyncio.Event) -> int:
    """Count up on the condition of the revision, until `done`. Returns the count."""
    number = revision = 0
    while not done.is_set():
        number += 1
        write = Write(key, str(number).encode(), expect=revision)
        [revision] = await store.apply([write])  # a write that was counted twice would conflict
    return number


async def count_through(store: RecordStore, disturb: Callable[[], Awaitable[None]]) -> None:
    """Let many callers count during `disturb`, and compare what is stored with what they know."""
    done = asyncio.Event()
    keys = [f"counter-{number}" for number in range(CALLERS)]
    async with asyncio.TaskGroup() as group:  # the first error ends it
        counting = [group.create_task(increment(store, key, done)) for key in keys]
        await disturb()
        done.set()
    records = await store.read(keys)
    assert [record and int(record.value) for record in records] == [
        task.result() for task in counting
    ]


async def after_more_writes(store: RecordStore) -> None:
    """Wait until the counters have moved on, so that a disturbance met writes under way."""
    cursor = (await store.changes(None)).cursor
    await store.changes(cursor)


async def test_no_acknowledged_write_is_lost_or_repeated_when_the_server_is_killed(
    own_server: PostgresServer,
) -> None:
    own_server.start()
    async with opened(own_server.url) as provider:
        store = await provider.open("counters")

        async def kill_twice() -> None:
            for _ in range(2):
                await after_more_writes(store)
                own_server.kill()
                await asyncio.to_thread(own_server.start)
            await after_more_writes(store)

        await count_through(store, kill_twice)


async def test_a_write_whose_answer_was_cut_off_is_not_stored_twice() -> None:
    async with proxied(server().port) as proxy, opened(through(proxy), space=new_space()) as here:
        store = await here.open("counters")

        async def cut_often() -> None:
            for _ in range(5):
                await after_more_writes(store)
                proxy.cut()
            await after_more_writes(store)

        await count_through(store, cut_often)


@pytest.mark.parametrize("expect", [0, None])
async def test_a_write_whose_answer_was_swallowed_is_not_stored_twice(expect: int | None) -> None:
    async with (
        proxied(server().port) as proxy,
        opened(through(proxy), space=new_space(), timeout_seconds=1) as provider,
    ):
        store = await provider.open("notes")
        [first] = await store.apply([Write("b", b"1", expect=expect)])  # prepares the statement
        proxy.swallow()
        assert await store.apply([Write("a", b"1", expect=expect)]) == [first + 1]
        assert (await store.changes(None)).cursor == first + 1


async def test_a_call_says_that_nothing_was_stored() -> None:
    async with (
        proxied(server().port) as proxy,
        opened(through(proxy), space=new_space(), timeout_seconds=1) as provider,
    ):
        store = await provider.open("notes")
        proxy.target = 1  # where nobody listens
        proxy.cut()
        await eventually(lambda: all(each.is_closed() for each in provider._connections._idle))
        with pytest.raises(StoreUnavailable, match=r"within 1 seconds\. Nothing was stored"):
            await store.apply([Write("a", b"1", expect=0)])
        proxy.target = server().port
        await store.apply([Write("a", b"2", expect=0)])


async def test_a_call_says_that_something_may_have_been_stored() -> None:
    async with (
        proxied(server().port) as proxy,
        opened(through(proxy), space=new_space(), timeout_seconds=1) as provider,
    ):
        store = await provider.open("notes")
        proxy.flowing.clear()
        with pytest.raises(StoreUnavailable, match="not known whether this was stored"):
            await store.apply([Write("a", b"1")])
        proxy.flowing.set()
        await store.apply([Write("a", b"2")])


async def test_a_start_without_a_server_says_so() -> None:
    with pytest.raises(EngineUnreachable, match="within 1 second"):
        async with opened("postgresql://nobody@127.0.0.1:1/none", timeout_seconds=1):
            pass


async def test_a_cancelled_read_disturbs_nobody() -> None:
    async with opened(server().url, space=new_space()) as provider:
        store = await provider.open("notes")
        await store.apply([Write("a", b"1")])
        for turns in range(10):
            reads = [asyncio.create_task(store.read(["a"])) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            reads[0].cancel()
            _, second, third = await asyncio.gather(*reads, return_exceptions=True)
            assert second == third == await store.read(["a"])


def through(proxy: Proxy) -> str:
    return server().url.replace(str(server().port), str(proxy.port))
