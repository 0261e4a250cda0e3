"""How long new keys take on a store of a given size, beside copying its file.

    python benchmarks/key_rotation.py --gigabytes 1

Prints the time of a new master key, of a new data key while the store is written to, and of a plain
copy of the file with fsync, and the two rotations as ratios to that copy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from strongroom.keys.master import MasterKey, new_master_key
from strongroom.settings import StorageSettings
from strongroom.storage.records import Write
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider

VALUE_BYTES = 10_000
BATCH = 1_000


async def fill(provider: EncryptedSqliteProvider, size: int) -> None:
    store = await provider.open("data")
    for start in range(0, size // VALUE_BYTES, BATCH):
        await store.apply([Write(f"{start + n:09}", os.urandom(VALUE_BYTES)) for n in range(BATCH)])


async def new_masters(provider: EncryptedSqliteProvider, times: int) -> list[float]:
    took = []
    for _ in range(times):
        master = MasterKey(new_master_key())
        begun = time.perf_counter()
        await provider.change_master(master)
        took.append(time.perf_counter() - begun)
    return took


async def new_data_key(provider: EncryptedSqliteProvider) -> tuple[float, list[float]]:
    """The time that a rotation takes, and the times that sets take meanwhile."""
    store, sets = await provider.open("data"), []

    async def write() -> None:
        for number in range(10**9):
            begun = time.perf_counter()
            await store.apply([Write(f"new-{number}", b"x" * 100)])
            sets.append(time.perf_counter() - begun)
            await asyncio.sleep(0.005)

    writing = asyncio.create_task(write())
    begun = time.perf_counter()
    await provider.rotate(["data"])
    took = time.perf_counter() - begun
    writing.cancel()
    await asyncio.wait([writing])
    return took, sets


def plain_copy(path: Path) -> float:
    begun = time.perf_counter()
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    took = time.perf_counter() - begun
    copy.unlink()
    return took


async def measure(directory: Path, gigabytes: float) -> None:
    settings = StorageSettings(
        profile="encrypted-sqlite", directory=directory, master_key=new_master_key()
    )
    provider = EncryptedSqliteProvider(settings)
    await provider.start()
    await fill(provider, int(gigabytes * 1e9))
    path = provider.files.path("data")
    masters = await new_masters(provider, 50)
    rotation, sets = await new_data_key(provider)
    await provider.close()
    size, copy = path.stat().st_size, plain_copy(path)
    sets.sort()
    print(f"file                      {size / 1e9:.2f} GB")
    print(f"plain copy with fsync     {copy:.2f} s")
    print(f"new data key, in use      {rotation:.2f} s   {rotation / copy:.1f} times the copy")
    print(
        f"  sets meanwhile          {len(sets)}, p50 {statistics.median(sets) * 1e3:.1f} ms, "
        f"p99 {sets[int(len(sets) * 0.99)] * 1e3:.1f} ms, longest {sets[-1] * 1e3:.0f} ms"
    )
    print(
        f"new master key            p50 {statistics.median(masters) * 1e3:.1f} ms, longest "
        f"{max(masters) * 1e3:.1f} ms   {statistics.median(masters) / copy:.4f} times the copy"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        asyncio.run(measure(Path(directory), arguments.gigabytes))


if __name__ == "__main__":
    main()
