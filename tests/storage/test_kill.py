"""A process killed in the middle of its writes loses nothing that it had acknowledged.

`python tests/storage/test_kill.py 100` runs a hundred rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from strongroom.settings import StorageSettings
from strongroom.storage.provider import open_provider

KEY = b"a passphrase would be slower here, so this is random".hex()[:64]
WRITERS = 8


class Item(BaseModel):
    number: int
    padding: str


def settings(directory: Path, profile: str) -> StorageSettings:
    key = KEY if profile == "encrypted-sqlite" else None
    return StorageSettings(profile=profile, directory=directory, master_key=key)


async def write_forever(directory: Path, profile: str) -> None:
    """Write, and say of each write on standard output when it is acknowledged."""
    provider = await open_provider(settings(directory, profile))
    store = await provider.get_kv_store(Item, "items")

    async def writer(number: int) -> None:
        for count in range(1_000_000):
            pair = [f"{number}-{count % 50}-a", f"{number}-{count % 50}-b"]
            padding = "x" * random.choice([10, 200, 5000])
            await store.set_many({key: Item(number=count, padding=padding) for key in pair})
            print(number, count, flush=True)

    await asyncio.gather(*(writer(number) for number in range(WRITERS)))


async def contents(directory: Path, profile: str) -> dict[str, Item]:
    provider = await open_provider(settings(directory, profile))
    try:
        return await (await provider.get_kv_store(Item, "items")).list()
    finally:
        await provider.close()


def kill_while_writing(directory: Path, profile: str, seconds: float) -> dict[int, int]:
    """Run the writers in a process, kill it, and return the last write that each acknowledged."""
    command = [sys.executable, __file__, "write", str(directory), profile]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(seconds)
        process.kill()
        said += process.stdout.read().splitlines()
    acknowledged: dict[int, int] = {}
    for line in said:
        with contextlib.suppress(ValueError):  # the last line may be cut short
            number, count = line.split()
            acknowledged[int(number)] = max(int(count), acknowledged.get(int(number), -1))
    return acknowledged


def check_round(directory: Path, profile: str, seconds: float) -> int:
    """One kill; returns how many writes were acknowledged before it."""
    acknowledged = kill_while_writing(directory, profile, seconds)
    items = asyncio.run(contents(directory, profile))
    for number, last in acknowledged.items():
        for count in range(max(0, last - 49), last + 1):
            one, two = (items[f"{number}-{count % 50}-{half}"] for half in "ab")
            assert one == two, "a transaction was stored in half"
            assert one.number in (count, count + 50), (count, one.number)
    return sum(acknowledged.values())


def kill_while_creating(directory: Path, seconds: float) -> bool:
    """Kill a process while it makes its directory and namespaces; whether it had begun to."""
    command = [sys.executable, __file__, "create", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has started Python, which takes longer than all that follows
        process.stdin.close()
        time.sleep(seconds)
        process.kill()
    begun = directory.exists() and any(directory.iterdir())
    for number in range(2):  # what stands there opens, and opens again
        assert asyncio.run(contents(directory, "encrypted-sqlite")) == {}, number
    return begun


async def create_forever(directory: Path) -> None:
    print("ready", flush=True)
    sys.stdin.read()
    provider = await open_provider(settings(directory, "encrypted-sqlite"))
    for number in range(1_000_000):
        await provider.get_kv_store(Item, f"made-{number}")


@pytest.mark.slow
def test_a_kill_while_directory_and_namespaces_are_made_leaves_what_opens(tmp_path: Path) -> None:
    begun = [
        kill_while_creating(tmp_path / str(number), random.uniform(0, 0.1)) for number in range(8)
    ]
    assert any(begun)


@pytest.mark.parametrize("profile", ["sqlite", "encrypted-sqlite"])
def test_acknowledged_writes_survive_a_kill(tmp_path: Path, profile: str) -> None:
    assert check_round(tmp_path, profile, 0.3) > 0


@pytest.mark.slow
def test_acknowledged_writes_survive_kill_after_kill(tmp_path: Path) -> None:
    for number in range(20):
        check_round(tmp_path / str(number // 5), "encrypted-sqlite", random.uniform(0, 0.4))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        asyncio.run(write_forever(Path(sys.argv[2]), sys.argv[3]))
    if sys.argv[1] == "create":
        asyncio.run(create_forever(Path(sys.argv[2])))
    with tempfile.TemporaryDirectory() as home:
        for number in range(int(sys.argv[1])):
            # Every few rounds a new directory, so that making one is interrupted too.
            place = Path(home) / str(number // 5)
            total = check_round(place, "encrypted-sqlite", random.uniform(0, 0.5))
            begun = kill_while_creating(Path(home) / f"new-{number}", random.uniform(0, 0.1))
            made = "begun and opens" if begun else "not begun"
            print(f"round {number + 1}: {total} acknowledged writes, all there; creation {made}")
