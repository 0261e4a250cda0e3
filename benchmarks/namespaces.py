"""Many namespaces in one node: what each costs to make, and how long the node takes to start.

    python benchmarks/namespaces.py 10000

Prints the processor time of a new namespace, of each fifth of them over the first, and the seconds
of a start with all of them.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from strongroom.settings import StorageSettings
from strongroom.storage import StorageProvider, open_provider

PARTS = 5


async def main(number: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        settings = StorageSettings(
            profile="encrypted-sqlite", directory=Path(directory) / "data", master_key="ab" * 32
        )
        provider = await open_provider(settings)
        first = 0.0
        for part in range(PARTS):
            took = await make(provider, range(part * number // PARTS, (part + 1) * number // PARTS))
            first = first or took
            made = (part + 1) * number // PARTS
            print(f"up to {made:6}: {took * 1000:6.2f} ms each, {took / first:.2f} of the first")
        await provider.close()
        begun = time.perf_counter()
        provider = await open_provider(settings)
        print(f"start with {number}: {time.perf_counter() - begun:.2f} s")
        await provider.close()


async def make(provider: StorageProvider, numbers: range) -> float:
    """The processor seconds of each new namespace."""
    begun = time.process_time()
    for number in numbers:
        await provider.open(f"namespace-{number}")
    return (time.process_time() - begun) / len(numbers)


asyncio.run(main(int(sys.argv[1])))
