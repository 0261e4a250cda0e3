"""Kills a node at each step of a change of keys, in a forked child, and checks what is left.

Run as `killed.py DIRECTORY data|master some|all`. A step is an fsync, a rename, a link, an unlink,
a new file, a change of the keystore, or a task or commit of a writer. Prints how many children were
killed, and in which state their directories were found.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from strongroom.disk.changes import ChangesFile
from strongroom.errors import WrongMasterKey
from strongroom.keys.keystore import KeyState
from strongroom.keys.master import MasterKey
from strongroom.settings import StorageSettings
from strongroom.storage.records import Write
from strongroom.storage.sqlite import writer
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider

KEY, OTHER = "1" * 64, "2" * 64
KILLED = 9
RECORDS = 300


async def open_provider(directory: Path, key: str) -> EncryptedSqliteProvider:
    settings = StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=key)
    provider = EncryptedSqliteProvider(settings)
    await provider.start()
    return provider


async def make(directory: Path) -> None:
    provider = await open_provider(directory, KEY)
    store = await provider.open("notes")
    await store.apply([Write(f"{n:04}", bytes(2000)) for n in range(RECORDS)])
    await provider.close()


def die_at(point: int) -> None:
    """Let the process end at its n-th step from now on."""
    steps = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == point:
                os._exit(KILLED)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "link", "open"):
        setattr(os, name, counted(getattr(os, name)))
    for name in ("replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    ChangesFile._write = counted(ChangesFile._write)  # type: ignore[method-assign]
    for name in ("_perform", "_commit", "_stop"):
        setattr(writer.Writer, name, counted(getattr(writer.Writer, name)))


async def change(directory: Path, what: str, point: int, acknowledged: int) -> None:
    """Change keys while records are written, whose numbers go to a pipe when acknowledged."""
    provider = await open_provider(directory, KEY)
    store = await provider.open("notes")

    async def write() -> None:
        for number in range(RECORDS, 100_000):
            await store.apply([Write(f"{number:04}", bytes(2000))])
            os.write(acknowledged, number.to_bytes(4))

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.005)
    die_at(point)
    if what == "data":
        await provider.rotate()
    else:
        await provider.change_master(MasterKey(OTHER))
    writing.cancel()
    await asyncio.wait([writing])
    await provider.close()


async def look(directory: Path, what: str, newest: int) -> str:
    """Open what is left, and tell its state."""
    try:
        provider, state = await open_provider(directory, KEY), "old"
    except WrongMasterKey:
        provider, state = await open_provider(directory, OTHER), "new"
    if what == "data":
        entries = provider.files.keystore.entries.values()
        rotated = {retired.namespace for retired in provider.files.keystore.retired}
        if any(entry.state is KeyState.ROTATING for entry in entries):
            state = f"rotating after {len(rotated)}"
        elif rotated:
            state = "new"
    await check(provider, newest)
    if what == "data" and state.startswith("rotating"):
        await provider.rotate()
        await check(provider, newest)
    await provider.close()
    assert not list(directory.glob(".*")), list(directory.glob(".*"))
    return state


async def check(provider: EncryptedSqliteProvider, newest: int) -> None:
    page = await (await provider.open("notes")).scan(limit=None, max_bytes=None)
    missing = {f"{n:04}" for n in range(newest + 1)} - {record.key for record in page.records}
    assert not missing, missing
    assert await provider.verify_audit() > 0


def forked(work: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def attempt(pristine: Path, tried: Path, what: str, point: int) -> tuple[bool, str]:
    """Kill a node at one step; returns whether it got that far, and what is left then."""
    shutil.rmtree(tried, ignore_errors=True)
    shutil.copytree(pristine, tried)
    found = tried.with_name("found")
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    status = forked(lambda: asyncio.run(change(tried, what, point, writing)))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        numbers = pipe.read() or b""
    newest = int.from_bytes(numbers[-4:]) if numbers else RECORDS - 1
    looked = forked(lambda: found.write_text(asyncio.run(look(tried, what, newest))))
    if status not in (0, KILLED) or looked != 0:
        raise SystemExit(f"lost after a kill at step {point} of {what}, status {status}")
    return status == KILLED, found.read_text()


def main(directory: Path, what: str, points: str) -> None:
    pristine, tried = directory / "pristine", directory / "tried"
    forked(lambda: asyncio.run(make(pristine)))
    states: collections.Counter[str] = collections.Counter()
    point, killed, going = 1, 0, True
    while going:
        going, state = attempt(pristine, tried, what, point)
        states[state] += 1
        killed += going
        point += 1 if points == "all" else 1 + point // 2
    print(json.dumps({"killed": killed, "states": dict(states)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
