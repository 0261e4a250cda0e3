"""How much memory a scan takes: the peak of a process that scans 10k, 100k and 1M records.

    .venv/bin/python benchmarks/scan_memory.py [records ...]

Each number of records gets its own directory, written by one process and scanned by another.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel

from strongroom.settings import StorageSettings
from strongroom.storage import StorageProvider
from strongroom.storage.provider import open_provider

BATCH = 1000


class Item(BaseModel):
    number: int
    text: str


async def provider_of(directory: Path) -> StorageProvider:
    settings = StorageSettings(
        profile="encrypted-sqlite", directory=directory, master_key="ab" * 32
    )
    return await open_provider(settings)


async def write(directory: Path, records: int) -> None:
    provider = await provider_of(directory)
    items = await provider.get_kv_store(Item, "items")
    for start in range(0, records, BATCH):
        numbers = range(start, min(records, start + BATCH))
        await items.set_many({f"{n:08}": Item(number=n, text="x" * 160) for n in numbers})
    await provider.close()


async def scan(directory: Path, records: int) -> None:
    provider = await provider_of(directory)
    items = await provider.get_kv_store(Item, "items")
    found = 0
    async for _ in items.scan():
        found += 1
    await provider.close()
    assert found == records
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{records:>9,} records: peak {peak:.0f} MiB")


def main() -> None:
    for records in [int(text) for text in sys.argv[1:]] or [10_000, 100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as directory:
            for step in ("write", "scan"):
                command = [sys.executable, __file__, step, directory, str(records)]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] in (["write"], ["scan"]):
        step = {"write": write, "scan": scan}[sys.argv[1]]
        asyncio.run(step(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
