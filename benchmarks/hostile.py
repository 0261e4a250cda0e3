"""How much longer honest calls take while a hostile child sends whatever may do harm.

    .venv/bin/python benchmarks/hostile.py [rounds]

Rounds without and with the hostile child take turns, in one process; compared is the median call.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from strongroom import Fabric, Sentinel
from support.fabrics import ADDRESS, Probe, fabric, sentinel
from support.hostile import HostileChild, play

CALLS = 300


async def harm(hub: Sentinel) -> None:
    for seed in itertools.count():
        steps = list(HostileChild(seed, hub.path, [ADDRESS]).steps(12))
        await play(hub, steps, reads=seed % 2 == 0)


async def call(client: Fabric) -> float:
    """The median of CALLS calls, in milliseconds."""
    remote = Probe.remote(ADDRESS, fabric=client)
    taken = []
    for number in range(CALLS):
        begun = time.perf_counter()
        assert await remote.echo(number) == number
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


async def main(rounds: int) -> None:
    logging.disable(logging.CRITICAL)
    usual, beside = [], []
    async with sentinel(node_id="hub") as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(Probe(), ADDRESS)
        await call(client)
        for _ in range(rounds):
            usual.append(await call(client))
            harming = asyncio.create_task(harm(hub))
            beside.append(await call(client))
            harming.cancel()
            await asyncio.gather(harming, return_exceptions=True)
    ratio = statistics.median(beside) / statistics.median(usual)
    print(f"usual       {statistics.median(usual):7.3f} ms a call")
    print(f"beside it   {statistics.median(beside):7.3f} ms a call, {ratio:.2f} times as long")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
