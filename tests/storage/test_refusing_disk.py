"""When a disk refuses, the error is clear, nothing is lost, and later the store works again."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
from pydantic import BaseModel

from strongroom.errors import StorageError, StoreUnavailable
from strongroom.settings import StorageSettings
from strongroom.storage import KeyValueStore, StorageProvider, Write
from strongroom.storage.provider import open_provider
from strongroom.testing.powerloss import Disk, Operation

KEY = "ab" * 32
NOTES = "notes_encrypted_value.db"


class Note(BaseModel):
    text: str


async def provider_of(directory: Path) -> StorageProvider:
    settings = StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)
    return await open_provider(settings)


class Refusal:
    """Lets a disk refuse one of its operations, counted from when it is armed."""

    def __init__(self, disk: Disk, *, kind: str, at: int, code: int, times: int = 1) -> None:
        self.left, self.times = at, times
        self.kind, self.code = kind, code
        self.refused: list[Operation] = []
        disk.refuse = self

    def __call__(self, operation: Operation) -> int | None:
        if not operation.kind.startswith(self.kind):
            return None
        self.left -= 1
        if self.left >= 0 or self.left < -self.times:
            return None
        self.refused.append(operation)
        return self.code


async def work(directory: Path, known: dict[str, str], unknown: dict[str, str]) -> None:
    """Create, write, checkpoint, close and reopen; each refusal must be a clear error."""
    for part in ("first", "second"):
        provider = await provider_of(directory)
        try:
            notes = await provider.get_kv_store(Note, "notes")
            for number in range(3):
                await put(notes, f"{part}-{number}", f"{part} " * 900, known, unknown)
            store: Any = await provider.open("notes")
            store.connections.was_used = False
            await store.connections.close_if_idle()
            await put(notes, "same", part, known, unknown)
        finally:
            await provider.close()


async def put(
    notes: KeyValueStore[Note], key: str, text: str, known: dict[str, str], unknown: dict[str, str]
) -> None:
    """Write; `known` is what was acknowledged, `unknown` what failed and may be there or not."""
    unknown[key] = text
    await notes.set(key, Note(text=text))
    known[key] = unknown.pop(key)


async def contents(directory: Path) -> dict[str, str]:
    provider = await provider_of(directory)
    try:
        notes = await provider.get_kv_store(Note, "notes")
        found = {key: note.text for key, note in (await notes.list()).items()}
        await notes.set("works again", Note(text="x"))
    finally:
        await provider.close()
    return found


async def one_refusal(directory: Path, kind: str, at: int, code: int) -> Refusal:
    disk = Disk(directory)
    refusal = Refusal(disk, kind=kind, at=at, code=code)
    known: dict[str, str] = {}
    unknown: dict[str, str] = {}
    with disk.recorded():
        try:
            await work(directory, known, unknown)
        except StorageError as error:
            assert isinstance(error, StoreUnavailable), (kind, at, error)
            assert "Try:" in str(error), error
    found = await contents(directory)
    for key in found.keys() | known.keys():
        assert found.get(key) in (known.get(key), unknown.get(key, known.get(key))), (kind, at, key)
    return refusal


REFUSALS = [("write", errno.ENOSPC), ("write", errno.EIO), ("sync", errno.EIO)]
REFUSALS += [
    ("create", errno.ENOSPC),
    ("rename", errno.EIO),
    ("link", errno.ENOSPC),
    ("remove", errno.EIO),
]


async def sweep(tmp_path: Path, kind: str, code: int, step: int) -> int:
    """Refuse each operation in turn, until there are no more."""
    at = 0
    while (await one_refusal(tmp_path / f"{kind}-{at}", kind, at, code)).refused:
        at += step
    return at


@pytest.mark.parametrize(("kind", "code"), REFUSALS)
async def test_a_disk_that_refuses_once_loses_nothing(tmp_path: Path, kind: str, code: int) -> None:
    assert await sweep(tmp_path, kind, code, {"write": 61, "sync": 29}.get(kind, 9)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), REFUSALS)
async def test_a_disk_that_refuses_at_any_operation_loses_nothing(
    tmp_path: Path, kind: str, code: int
) -> None:
    assert await sweep(tmp_path, kind, code, 1) > 0


async def test_a_file_moved_away_under_a_running_node_stops_it_until_it_is_back(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "data"
    provider = await provider_of(directory)
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("a", Note(text="before"))
    (directory / NOTES).rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(
            StoreUnavailable, match=r"removed, replaced or changed.*Try: put it back"
        ):
            await notes.set("a", Note(text="while it is away"))
    shutil.copy(tmp_path / "away", directory / NOTES)  # a copy is another file
    with pytest.raises(StoreUnavailable, match="removed, replaced or changed"):
        await notes.set("a", Note(text="beside a copy"))
    (tmp_path / "away").replace(directory / NOTES)
    assert await notes.get("a") == Note(text="before")
    await notes.set("b", Note(text="after"))
    await provider.close()
    assert await contents(directory) == {"a": "before", "b": "after"}


async def test_after_a_failed_sync_the_connection_is_not_used_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "data")
    with disk.recorded():
        provider = await provider_of(tmp_path / "data")
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set("a", Note(text="before"))
        store: Any = await provider.open("notes")
        writer = await store.connections.open()
        Refusal(disk, kind="sync", at=0, code=errno.EIO)
        with pytest.raises(StoreUnavailable, match="Try:"):
            await notes.set("b", Note(text="refused"))
        assert writer.broken
        await notes.set("c", Note(text="after"))
        assert await store.connections.open() is not writer
        await provider.close()
    found = await contents(tmp_path / "data")
    assert (found["a"], found["c"]) == ("before", "after")


async def fill(directory: Path) -> None:
    """Write under a limit to the size of files, until it refuses, and again when it is gone."""
    provider = await provider_of(directory)
    notes = await provider.get_kv_store(Note, "notes")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    known: dict[str, str] = {}
    with pytest.raises(StoreUnavailable, match="Try:"):
        for number in range(1000):
            await put(notes, str(number), "x" * 5000, known, {})
    assert known
    for key in known:
        assert await notes.get(key) is not None
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await put(notes, "room again", "x" * 5000, known, {})
    await provider.close()
    assert (await contents(directory)).items() >= known.items()


def test_a_refusal_by_the_operating_system_is_handled_too(tmp_path: Path) -> None:
    subprocess.run([sys.executable, __file__, str(tmp_path / "data")], check=True)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_is_not_writable_is_reported(tmp_path: Path) -> None:
    assert await contents(tmp_path / "data") == {}
    (tmp_path / "data").chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable, match="may be written"):
            await contents(tmp_path / "data")
    finally:
        (tmp_path / "data").chmod(0o700)
    assert await contents(tmp_path / "data") == {"works again": "x"}


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1])))


async def test_a_broken_connection_stays_broken_for_all_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task between two writes ends a batch, so that all six are refused one by one."""
    settings = StorageSettings(profile="sqlite", directory=tmp_path)
    provider = await open_provider(settings)
    store: Any = await provider.open("notes")
    writer = await store.connections.open()
    written = writer._write
    refusals = iter([apsw.IOError("the sync failed")])

    def write(batch: list[Any], now: int) -> int:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return int(written(batch, now))

    monkeypatch.setattr(writer, "_write", write)
    gate = threading.Event()
    held = asyncio.create_task(writer.run(lambda connection: gate.wait()))
    await asyncio.sleep(0)
    waiting: list[asyncio.Task[Any]] = []
    for key in "abc":
        waiting.append(asyncio.create_task(store.apply([Write(key, b"value")])))
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(writer.run(lambda connection: None)))
        await asyncio.sleep(0)
    gate.set()
    await held
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes
    assert await store.read(["a", "b", "c"]) == [None, None, None]
    assert await store.apply([Write("d", b"value")]) == [1]
    await provider.close()
