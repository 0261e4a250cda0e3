"""The changes of a keystore: complete after a kill, refused when changed, small for each."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from strongroom.disk.changes import Sealer, read_changes
from strongroom.errors import KeystoreOlder, StorageError, StoreDamaged, StoreUnavailable
from strongroom.storage.sqlite.provider import SqliteProvider
from support.files import flip
from support.notes import Note, contents, fill, provider_of

CHANGES = "__keystore_changes"
PLAIN: dict[str, Any] = {"key": None, "profile": "sqlite"}


async def killed(directory: Path, **settings: Any) -> Path:
    """A directory as a kill leaves it, in which three namespaces were made since the start."""
    left = directory.with_name("killed")
    async with provider_of(directory, **settings) as provider:
        for name in ("one", "two", "three"):
            await (await provider.get_kv_store(Note, name)).set("a", Note(text=name))
        shutil.copytree(directory, left)
    return left


@pytest.mark.parametrize("settings", [{}, PLAIN], ids=["encrypted", "plain"])
async def test_what_was_changed_before_a_kill_is_known_after_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    left = await killed(tmp_path / "data", **settings)
    assert (left / CHANGES).exists()
    for name in ("one", "two", "three"):
        assert await contents(left, name, **settings) == {"a": name}
    assert not (left / CHANGES).exists()  # a clean stop leaves a keystore that is whole


async def test_a_rotation_and_a_drop_before_a_kill_are_known_after_it(tmp_path: Path) -> None:
    left = tmp_path / "killed"
    await fill(tmp_path / "data", "a")
    await fill(tmp_path / "data", "a", namespace="other")
    async with provider_of(tmp_path / "data") as provider:
        await provider.rotate(["notes"])
        await provider.drop("other")
        await provider.get_kv_store(Note, "other")
        shutil.copytree(tmp_path / "data", left)
    async with provider_of(left) as provider:
        assert [old.namespace for old in provider.files.keystore.retired] == ["notes"]
        assert await provider.namespaces() == ["__node_meta", "notes", "other"]
    assert list(await contents(left)) == ["a"]
    assert await contents(left, "other") == {}


async def test_a_changed_byte_is_damage_or_makes_an_older_keystore(tmp_path: Path) -> None:
    left = await killed(tmp_path / "data")
    size = (left / CHANGES).stat().st_size
    for offset in range(0, size, 37):
        tried = tmp_path / "tried"
        shutil.copytree(left, tried)
        flip(tried / CHANGES, offset)
        with pytest.raises(StorageError) as raised:
            await contents(tried, "three")
        assert isinstance(raised.value, StoreDamaged | KeystoreOlder), (offset, raised.value)
        shutil.rmtree(tried)


@pytest.mark.parametrize("kept", [0, 8, 24, 25, 300])
async def test_a_cut_file_is_an_older_keystore(tmp_path: Path, kept: int) -> None:
    left = await killed(tmp_path / "data")
    os.truncate(left / CHANGES, kept)
    with pytest.raises(KeystoreOlder):
        await contents(left)


async def test_a_record_that_a_crash_cut_off_at_the_end_does_not_count(tmp_path: Path) -> None:
    left = await killed(tmp_path / "data")
    with (left / CHANGES).open("ab") as file:
        file.write(b"\0\0\1\0" + bytes(100))
    assert await contents(left, "three") == {"a": "three"}


async def test_the_changes_of_another_keystore_are_none_of_this_one(tmp_path: Path) -> None:
    left = await killed(tmp_path / "data")
    await contents(tmp_path / "data")
    shutil.copy2(left / CHANGES, tmp_path / "data" / CHANGES)
    assert await contents(tmp_path / "data", "three") == {"a": "three"}


def test_a_record_is_valid_only_in_its_place() -> None:
    sealer = Sealer(None, bytes(16))
    assert list(read_changes(Path("/nowhere/keystore.db"), sealer)) == []
    for key in (bytes(32), None):
        sealer = Sealer(key, bytes(16))
        sealed = sealer.seal(24, b"a change")[4:]
        assert sealer.open(24, sealed) == b"a change"
        assert sealer.open(25, sealed) is None
        assert Sealer(key, bytes(15) + b"x").open(24, sealed) is None
        assert sealer.open(24, b"") is None


# --- many namespaces --------------------------------------------------------------------------


async def test_a_namespace_costs_the_same_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and syncs are counted, of the tenth and of the three hundredth."""
    counts = {"written": 0, "synced": 0}
    pwrite, fsync = os.pwrite, os.fsync

    def count_written(descriptor: int, data: bytes, offset: int) -> int:
        counts["written"] += len(data)
        return pwrite(descriptor, data, offset)

    def count_synced(descriptor: int) -> None:
        counts["synced"] += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "pwrite", count_written)
    monkeypatch.setattr(os, "fsync", count_synced)
    costs = []
    async with provider_of(tmp_path, **PLAIN) as provider:
        for number in range(300):
            before = dict(counts)
            await provider.open(f"n{number:03}")
            costs.append({name: counts[name] - before[name] for name in counts})
    assert costs[299]["synced"] == costs[10]["synced"]
    assert costs[299]["written"] < 1.2 * costs[10]["written"] + 256


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_with_ten_thousand_namespaces_starts_and_is_used(tmp_path: Path) -> None:
    async def make() -> None:
        async with provider_of(tmp_path) as provider:
            for number in range(10_000):
                await provider.open(f"n{number}")

    async def look() -> None:
        async with provider_of(tmp_path) as provider:
            assert len(await provider.namespaces()) == 10_001
            await use(provider)

    async def use(provider: SqliteProvider) -> None:
        for number in (0, 5000, 9999):
            notes = await provider.get_kv_store(Note, f"n{number}")
            await notes.set("a", Note(text="x"))
            assert await notes.get("a") == Note(text="x")

    asyncio.run(make())
    asyncio.run(look())


async def test_a_disk_that_refuses_a_change_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def refuse(descriptor: int, data: bytes, offset: int) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == CHANGES:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data, offset)

    async with provider_of(tmp_path) as provider:
        await provider.open("before")
        with monkeypatch.context() as refusing:
            refusing.setattr(os, "pwrite", refuse)
            with pytest.raises(StoreUnavailable, match="No space"):
                await provider.open("refused")
        await provider.open("after")
        await provider.open("refused")
    async with provider_of(tmp_path) as provider:
        assert await provider.namespaces() == ["__node_meta", "after", "before", "refused"]
