"""A power loss at any moment loses nothing that was acknowledged, and leaves nothing in half.

A workload is recorded once, down to each write and sync of the disk. For each moment of it, and
each way in which a disk may lose what was not synced, the files are made as the disk would hold
them, and opened again.

`python tests/storage/test_powerloss.py` tries each moment in every way.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel

from strongroom.disk import database, directory
from strongroom.keys.master import MasterKey
from strongroom.settings import StorageSettings
from strongroom.storage import Delete, KeyValueStore, Set
from strongroom.storage.provider import open_provider
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider, SqliteProvider
from strongroom.testing.powerloss import Disk, Loss

KEY, NEW_KEY = "ab" * 32, "cd" * 32

State = dict[tuple[str, str], str | None]
"""The texts by namespace and key; None for what was deleted."""


class Note(BaseModel):
    text: str


async def provider_of(directory: Path, profile: str, key: str = KEY) -> SqliteProvider:
    previous = {KEY: None, NEW_KEY: KEY}[key]
    encrypted: dict[str, Any] = {"master_key": key, "previous_master_key": previous}
    provider = await open_provider(
        StorageSettings(
            profile=profile,
            directory=directory,
            **(encrypted if profile == "encrypted-sqlite" else {}),
        )
    )
    assert isinstance(provider, SqliteProvider)
    return provider


@dataclass
class Teller:
    """Says into the record what is asked for, and what was acknowledged."""

    disk: Disk
    begun: Iterator[int] = field(default_factory=itertools.count)

    async def put(self, notes: KeyValueStore[Note], texts: dict[str, str | None]) -> None:
        """Set and delete, all or nothing."""
        number = next(self.begun)
        name = notes.namespace
        self.disk.note((number, {(name, key): text for key, text in texts.items()}))
        async with notes.transaction() as transaction:
            for key, text in texts.items():
                if text is None:
                    await transaction.delete(key)
                else:
                    await transaction.set(key, Note(text=text))
        self.disk.note((number, None))

    async def put_together(self, provider: SqliteProvider, texts: State) -> None:
        """Set and delete in several namespaces, all or nothing."""
        number = next(self.begun)
        self.disk.note((number, texts))
        batches = []
        for namespace in sorted({namespace for namespace, _ in texts}):
            notes = await provider.get_kv_store(Note, namespace)
            batches.append(
                notes.batch(
                    [
                        Delete(key) if text is None else Set(key, Note(text=text))
                        for (where, key), text in texts.items()
                        if where == namespace
                    ]
                )
            )
        await provider.apply_together(batches)
        self.disk.note((number, None))

    async def drop(self, provider: SqliteProvider, namespace: str, keys: list[str]) -> None:
        number = next(self.begun)
        self.disk.note((number, {(namespace, key): None for key in keys}))
        await provider.drop(namespace)
        self.disk.note((number, None))


async def work(disk: Disk, directory: Path, profile: str) -> None:
    """All that changes files: creation, writes, checkpoints, rotation, drop, reopening."""
    teller = Teller(disk)
    provider = await provider_of(directory, profile)
    notes = await provider.get_kv_store(Note, "notes")
    await teller.put(notes, {"a": "first", "long": "x" * 20_000})
    together: list[dict[str, str | None]] = [
        {f"{n}-a": f"{n}" * 500, f"{n}-b": f"{n}"} for n in range(3)
    ]
    await asyncio.gather(*(teller.put(notes, texts) for texts in together))
    await teller.put(notes, {"a": "second", "0-a": None, "0-b": None})
    other = await provider.get_kv_store(Note, "other")
    await teller.put(other, {"b": "other"})
    store = await provider.open("notes")
    await store.connections.close_if_idle()
    store.connections.was_used = False
    await store.connections.close_if_idle()
    await teller.put(notes, {"a": "third"})
    await provider._mark([store])
    await teller.put(notes, {"a": "fourth", "long": None})
    if isinstance(provider, EncryptedSqliteProvider):
        await provider.rotate(["notes"])
        await teller.put(notes, {"after-rotation": "x"})
        await provider.change_master(MasterKey(NEW_KEY))
        disk.note("master")
    await teller.drop(provider, "other", ["b"])
    other = await provider.get_kv_store(Note, "other")
    await teller.put(other, {"c": "anew"})
    await (await provider.open("notes")).compact()
    await teller.put_together(provider, {("notes", "a"): "joint", ("other", "c"): "joint"})
    await asyncio.gather(
        teller.put_together(provider, {("notes", "b"): "x" * 9000, ("other", "b"): "x" * 9000}),
        teller.put(notes, {"beside": "x"}),
        teller.put_together(provider, {("notes", "b"): None, ("other", "b"): None}),
    )
    await provider.close()
    key = NEW_KEY if profile == "encrypted-sqlite" else KEY
    provider = await provider_of(directory, profile, key)
    notes = await provider.get_kv_store(Note, "notes")
    await teller.put(notes, {"a": "fifth"})
    await provider.close()


def record(directory: Path, profile: str) -> Disk:
    disk = Disk(directory)
    with disk.recorded():
        asyncio.run(work(disk, directory, profile))
    return disk


def expected(notes: list[Any]) -> list[State]:
    """All that may be there: what was acknowledged, with any of what was under way, each whole."""
    under_way: dict[int, State] = {}
    state: State = {}
    for note in notes:
        if note != "master":
            number, texts = note
            if texts is None:
                state |= under_way.pop(number)
            else:
                under_way[number] = texts
    possible = [state]
    for texts in under_way.values():
        possible += [one | texts for one in possible]
    return [{at: text for at, text in one.items() if text is not None} for one in possible]


async def contents(directory: Path, profile: str, key: str) -> State:
    """All that is there; it can also be written."""
    provider = await provider_of(directory, profile, key)
    found: State = {}
    try:
        for namespace in ("notes", "other"):
            notes = await provider.get_kv_store(Note, namespace)
            for at, note in (await notes.list()).items():
                found[namespace, at] = note.text
            await notes.set("can be written", Note(text="x"))
    finally:
        await provider.close()
    return found


def check(disk: Disk, moment: int, loss: Loss, profile: str, place: Path) -> None:
    disk.after_power_loss(moment, loss, Random(moment), into=place)
    notes = disk.notes(moment)
    key = NEW_KEY if "master" in disk.notes(len(disk.operations)) else KEY
    where = f"moment {moment} of {len(disk.operations)}, {loss}: {disk.operations[moment - 1][:2]}"
    try:
        found = asyncio.run(contents(place, profile, key))
    except Exception as error:
        raise AssertionError(where) from error
    assert found in expected(notes), where
    shutil.rmtree(place)


@pytest.fixture(scope="module", params=["sqlite", "encrypted-sqlite"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Disk, str]:
    directory = tmp_path_factory.mktemp("recorded") / "data"
    return record(directory, request.param), request.param


def test_a_power_loss_at_some_moments_loses_nothing_acknowledged(
    recorded: tuple[Disk, str], tmp_path: Path
) -> None:
    disk, profile = recorded
    moments = Random(3).sample(range(len(disk.operations) + 1), 24)
    for moment, loss in zip(moments, itertools.cycle(Loss), strict=False):
        check(disk, moment, loss, profile, tmp_path / "lost")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_power_loss_at_any_moment_loses_nothing_acknowledged(
    recorded: tuple[Disk, str], tmp_path: Path
) -> None:
    disk, profile = recorded
    losses = itertools.cycle(Loss)  # run as a program, each moment has all of them
    for moment in range(len(disk.operations) + 1):
        check(disk, moment, next(losses), profile, tmp_path / "lost")


@pytest.mark.parametrize("left_out", ["sync of the log", "sync of names", "sync of whole files"])
def test_a_store_that_leaves_a_sync_out_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left_out: str
) -> None:
    if left_out == "sync of the log":
        monkeypatch.setattr(database, "_PRAGMAS", ("PRAGMA synchronous = OFF",))
    elif left_out == "sync of names":
        monkeypatch.setattr(directory, "sync_directory", lambda _: None)
    else:
        monkeypatch.setattr(directory, "sync_file", lambda _: None)
        monkeypatch.setattr(database, "_PRAGMAS", ("PRAGMA synchronous = OFF",))
    disk = record(tmp_path / "data", "encrypted-sqlite")
    acknowledged = [n for n, told in enumerate(disk.operations, 1) if told.kind == "note"]
    with pytest.raises(AssertionError):
        for moment in acknowledged:
            check(disk, moment, Loss.ALL, "encrypted-sqlite", tmp_path / "lost")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        for name in ("sqlite", "encrypted-sqlite"):
            disk = record(Path(home) / name, name)
            moments = range(len(disk.operations) + 1)
            for number, loss in itertools.product(moments, Loss):
                check(disk, number, loss, name, Path(home) / "lost")
            print(f"{name}: {len(moments)} moments, each lost in {len(Loss)} ways", flush=True)
