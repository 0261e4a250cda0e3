"""Durable sets, gets, scans and openings: Strongroom beside its peers, as ratios.

    python benchmarks/storage.py                 a few minutes
    python benchmarks/storage.py --records 100000 --size 16384 --peers sqlite3,sqlcipher

Each measurement runs in its own process, ours and the peers' alternately, so that a machine whose
speed drifts favours none. A ratio above 1 says that Strongroom is faster. A peer that is not
installed is left out and named. All run on uvloop where it is installed, as our nodes do. Naylence
needs Python 3.12: name an interpreter that has it in STRONGROOM_NAYLENCE_PYTHON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from storage_peers import PEERS, Item, Peer
from strongroom.nodes.process import run

CALLERS = (1, 64, 1024)
GETS = 20_000


async def measure(name: str, directory: Path, records: int, size: int, sets: int) -> None:
    """Run one peer through all operations, and print what each took as JSON."""
    peer = PEERS[name]()
    await peer.open(directory)
    found: dict[str, float] = {}
    for callers in CALLERS:
        found[f"set, {callers} callers, per second"] = await sets_per_second(
            peer, callers, max(sets, callers * 20), size
        )
    await fill(peer, name, records, size)
    keys = [f"item-{number * 7919 % records:08}" for number in range(GETS)]
    if name.startswith("strongroom"):
        found["get, hot, of bytes"] = await raw_gets_per_second(peer, keys[0])
        found["Pydantic's parse alone"] = await rate(
            GETS, lambda: get_all(ParseAlone(size), keys[:1] * GETS)
        )
    found["get, hot, per second"] = await rate(GETS, lambda: get_all(peer, keys[:1] * GETS))
    found["get, spread, per second"] = await rate(GETS, lambda: get_all(peer, keys))
    with contextlib.suppress(NotImplementedError):
        found["scan, records per second"] = await rate(records, lambda: scan_all(peer))
    await peer.close()
    if name.startswith("strongroom"):
        found["open a namespace, per second"] = await opens_per_second(name, directory)
    print(json.dumps(found))


async def opens_per_second(name: str, directory: Path) -> float:
    """How fast a running node opens an existing namespace."""
    peer = PEERS[name]()
    await peer.open(directory)
    store = peer.provider._stores["items"]  # type: ignore[attr-defined]  # noqa: SLF001
    times = []
    for _ in range(20):
        store.connections.was_used = False
        await store.connections.close_if_idle()
        began = time.perf_counter()
        await store.connections.open()
        times.append(time.perf_counter() - began)
    await peer.close()
    return 1 / statistics.median(times)


async def raw_gets_per_second(peer: Peer, key: str) -> float:
    """How fast the raw bytes of a hot record are read, without the model."""
    store = peer.provider._stores["items"]  # type: ignore[attr-defined]  # noqa: SLF001

    async def read() -> None:
        for _ in range(GETS):
            await store.read((key,))

    return await rate(GETS, read)


async def sets_per_second(peer: Peer, callers: int, sets: int, size: int) -> float:
    item = Item(value="x" * size)
    each = max(1, sets // callers)

    async def caller(number: int) -> None:
        for count in range(each):
            await peer.set(f"caller-{number}-{count}", item)

    async def all_callers() -> None:
        await asyncio.gather(*(caller(number) for number in range(callers)))

    return await rate(each * callers, all_callers)


async def fill(peer: Peer, name: str, records: int, size: int) -> None:
    """Store the records that are read; many at once where the peer can, as it is not measured."""
    item = Item(value="x" * size)
    if name.startswith("strongroom"):
        store = peer.store  # type: ignore[attr-defined]
        for start in range(0, records, 1000):
            part = range(start, min(records, start + 1000))
            await store.set_many({f"item-{number:08}": item for number in part})
    else:
        for number in range(records):
            await peer.set(f"item-{number:08}", item)


class ParseAlone:
    """What a typed get cannot do without: Pydantic makes an object of the stored bytes."""

    def __init__(self, size: int) -> None:
        self._data = Item(value="x" * size).model_dump_json().encode()

    async def get(self, _key: str) -> Item:
        return Item.model_validate_json(self._data)


async def get_all(peer: Peer | ParseAlone, keys: list[str]) -> None:
    for key in keys:
        await peer.get(key)


async def scan_all(peer: Peer) -> None:
    async for _ in peer.scan():
        pass


async def rate(operations: int, run: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await run()
    return operations / (time.perf_counter() - began)


def run_apart(name: str, arguments: argparse.Namespace) -> dict[str, float] | None:
    """Measure one peer in its own process; None if it is not installed."""
    python = sys.executable
    if name == "naylence":
        python = os.environ.get("STRONGROOM_NAYLENCE_PYTHON", python)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        done = subprocess.run(
            [
                python,
                __file__,
                f"--measure={name}",
                f"--directory={directory}/data",
                f"--records={arguments.records}",
                f"--size={arguments.size}",
                f"--sets={arguments.sets}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr and not name.startswith("strongroom"):
            return None
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000, help="to get and scan (10000)")
    parser.add_argument("--size", type=int, default=200, help="bytes of each record (200)")
    parser.add_argument("--sets", type=int, default=500, help="at least (500; 20 for each caller)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (3)")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, with commas between")
    parser.add_argument("--directory", type=Path, help="on which disk (the system's temporary)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        run(
            measure(
                arguments.measure,
                arguments.directory,
                arguments.records,
                arguments.size,
                arguments.sets,
            )
        )
        return
    names = ["strongroom", *(n for n in arguments.peers.split(",") if n != "strongroom")]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            if (found := run_apart(name, arguments)) is not None:
                rounds[name].append(found)
    report(rounds, arguments)


def report(rounds: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    ours = rounds["strongroom"]
    peers = [name for name, found in rounds.items() if found and name != "strongroom"]
    missing = [name for name, found in rounds.items() if not found]
    print(f"{arguments.records} records of {arguments.size} bytes, median of {len(ours)} rounds.")
    print("Strongroom encrypted; then how many times as fast it is as each peer.\n")
    print(f"{'':32}{'strongroom':>12}" + "".join(f"{name:>18}" for name in peers))
    for operation in ours[0]:
        row = f"{operation:32}{statistics.median(f[operation] for f in ours):>12,.0f}"
        for name in peers:
            pairs = zip(ours, rounds[name], strict=True)
            ratios = [a[operation] / b[operation] for a, b in pairs if operation in b]
            row += f"{f'{statistics.median(ratios):.2f}x' if ratios else '-':>18}"
        print(row)
    if missing:
        print(f"\nNot installed: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
