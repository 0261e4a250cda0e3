"""How long the event loop is held while 1,024 callers write and 100,000 records are scanned.

    .venv/bin/python benchmarks/event_loop.py [seconds]

A task sleeps a millisecond at a time; how late it wakes is how long others held the loop.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel

from strongroom.settings import StorageSettings
from strongroom.storage import KeyValueStore
from strongroom.storage.provider import open_provider

CALLERS = 1024
RECORDS = 100_000
TICK = 0.001


class Item(BaseModel):
    number: int
    text: str


async def tick(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + TICK
        await asyncio.sleep(TICK)
        late.append(time.perf_counter() - due)


async def write(items: KeyValueStore[Item], caller: int, written: list[int]) -> None:
    while True:
        await items.set(f"caller-{caller}", Item(number=written[0], text="x" * 160))
        written[0] += 1


async def scan(items: KeyValueStore[Item], scanned: list[int]) -> None:
    while True:
        async for _ in items.scan("old"):
            scanned[0] += 1


async def measure(name: str, seconds: float, work: list[asyncio.Task[None]]) -> None:
    await asyncio.sleep(0.5)  # starting all tasks in one turn takes time that is not the store's
    late: list[float] = []
    ticking = asyncio.create_task(tick(late))
    await asyncio.sleep(seconds)
    for task in [ticking, *work]:
        task.cancel()
    await asyncio.gather(ticking, *work, return_exceptions=True)
    late.sort()
    shares = {"50 %": 0.5, "99 %": 0.99, "99.9 %": 0.999}
    row = "  ".join(f"{k}: {late[int(len(late) * at)] * 1e3:6.2f} ms" for k, at in shares.items())
    print(f"{name:<36}{row}  worst: {late[-1] * 1e3:6.2f} ms  ({len(late)} ticks)")


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        settings = StorageSettings(
            profile="encrypted-sqlite", directory=Path(directory), master_key="ab" * 32
        )
        provider = await open_provider(settings)
        items = await provider.get_kv_store(Item, "items")
        for start in range(0, RECORDS, 1000):
            numbers = range(start, start + 1000)
            await items.set_many({f"old-{n:06}": Item(number=n, text="x" * 160) for n in numbers})
        await measure("nothing else", seconds, [])
        for writers, scans in ((CALLERS, 0), (0, 1), (CALLERS, 1)):
            written, scanned = [0], [0]
            tasks = [asyncio.create_task(write(items, n, written)) for n in range(writers)]
            tasks += [asyncio.create_task(scan(items, scanned)) for _ in range(scans)]
            await measure(f"{writers} callers write, {scans} scan", seconds, tasks)
            print(
                f"    {written[0] / (seconds + 0.5):,.0f} writes/s, "
                f"{scanned[0] / (seconds + 0.5):,.0f} records/s"
            )
        await provider.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10))
