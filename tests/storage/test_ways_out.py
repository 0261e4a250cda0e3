"""Every refusal leads out: what an error advises, carried out as it says, ends with a working node.

Each way makes a directory unusable, reads the remedy of the error, puts back the files that it
speaks of, runs the command that it names, and looks at what is there afterwards.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from strongroom import errors
from strongroom.cli.main import app
from strongroom.errors import (
    AuditBroken,
    DirectoryError,
    ForeignStore,
    KeystoreMissing,
    KeystoreOlder,
    ProfileMismatch,
    StorageError,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreNotEncrypted,
    StoreRolledBack,
    StoreSwapped,
    StrongroomError,
    WrongMasterKey,
)
from strongroom.storage.provider import NODE_META
from strongroom.storage.records import Write
from support.files import flip
from support.notes import KEY, KEYSTORE, META, NOTES, Note, contents, fill, provider_of

OTHER, THIRD = (NOTES.replace("notes", name) for name in ("other", "third"))
OLD, NEW = ["a"], ["a", "b", "c"]
"""The notes in the backup, and those of the node."""

SUFFIXES = ("", "-wal", "-shm")


class Place(NamedTuple):
    """A node's directory, and the backup that was made of it."""

    data: Path
    backup: Path

    def put_back(self, name: str) -> None:
        """Put a file and its log back from the backup."""
        for suffix in SUFFIXES:
            (self.data / (name + suffix)).unlink(missing_ok=True)
            if (self.backup / (name + suffix)).exists():
                shutil.copy2(self.backup / (name + suffix), self.data / (name + suffix))

    def rename(self, name: str, new: str) -> None:
        (self.data / name).rename(self.data / new)

    def refusal(self, **settings: Any) -> StorageError:
        """The error with which the node does not start, or with which a check of it ends."""

        async def start() -> None:
            async with provider_of(self.data, **settings) as provider:
                for namespace in await provider.namespaces():
                    await provider.open(namespace)
                await provider.verify_audit()

        with pytest.raises(StorageError) as raised:
            asyncio.run(start())
        assert raised.value.remedy
        return raised.value

    def obey(self, error: StrongroomError, command: str) -> None:
        """Run the command that the remedy names, which begins as `command` does."""
        named = re.findall(r"strongroom (store \w+ \w+)", error.remedy or "")
        chosen = [each for each in named if each.startswith(f"store {command}")]
        assert chosen, (command, error.remedy)
        run(self.data, *chosen[0].split(), "--yes")

    def holds(self, notes: list[str], *, other: Sequence[str] = ("a", "b", "c")) -> None:
        """The node starts and can be written; it has these notes, and the others are untouched."""
        assert sorted(asyncio.run(contents(self.data))) == notes
        assert sorted(asyncio.run(contents(self.data, "other"))) == [*other]
        asyncio.run(fill(self.data, "written"))
        assert "written" in asyncio.run(contents(self.data))

        async def audit() -> None:
            async with provider_of(self.data) as provider:
                await provider.verify_audit()

        asyncio.run(audit())


def run(directory: Path, *arguments: str) -> str:
    environment = {"FAME_STORAGE_MASTER_KEY": KEY, "FAME_STORAGE_PROFILE": "encrypted-sqlite"}
    done = CliRunner().invoke(
        app, [*arguments, "--directory", str(directory)], env=environment, catch_exceptions=True
    )
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.output


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "data", tmp_path / "backup")
    asyncio.run(fill(place.data, *OLD))
    asyncio.run(fill(place.data, *OLD, namespace="other"))
    shutil.copytree(place.data, place.backup)
    asyncio.run(fill(place.data, *NEW[1:]))
    asyncio.run(fill(place.data, *NEW[1:], namespace="other"))
    return place


def refused(place: Place, kind: type[StorageError], **settings: Any) -> StorageError:
    error = place.refusal(**settings)
    assert type(error) is kind, error
    return error


# --- one store --------------------------------------------------------------------------------


def test_a_missing_file_is_put_back_and_accepted(place: Place) -> None:
    (place.data / NOTES).unlink()
    refused(place, StoreMissing)
    place.put_back(NOTES)
    place.obey(refused(place, StoreRolledBack), "accept")
    place.holds(OLD)


def test_a_missing_file_is_forgotten(place: Place) -> None:
    (place.data / NOTES).unlink()
    place.obey(refused(place, StoreMissing), "forget")
    place.holds([])


@pytest.mark.parametrize("offset", [3, 12, 30, 5000], ids=["magic", "id", "page 1", "page 2"])
def test_a_damaged_file_is_put_back_and_accepted(place: Place, offset: int) -> None:
    flip(place.data / NOTES, offset)
    error = refused_in_some_way(place)
    place.put_back(NOTES)
    place.obey(refused(place, StoreRolledBack), "accept")
    assert "accept notes" in (error.remedy or "")
    place.holds(OLD)


@pytest.mark.parametrize("offset", [3, 12, 30, 5000], ids=["magic", "id", "page 1", "page 2"])
def test_a_damaged_file_is_forgotten(place: Place, offset: int) -> None:
    flip(place.data / NOTES, offset)
    place.obey(refused_in_some_way(place), "forget")
    place.holds([])


def refused_in_some_way(place: Place) -> StorageError:
    """A changed id makes it the file of another node; pages are read when they are needed."""
    try:
        return place.refusal()
    except pytest.fail.Exception:  # all that a start reads is sound
        with pytest.raises(StoreDamaged) as raised:
            asyncio.run(contents(place.data))
        return raised.value


def test_an_older_copy_is_accepted_and_what_is_lost_is_said(place: Place) -> None:
    place.put_back(NOTES)
    error = refused(place, StoreRolledBack)
    said = CliRunner().invoke(
        app,
        ["store", "accept", "notes", "--directory", str(place.data)],
        input="n\n",
        env={"FAME_STORAGE_MASTER_KEY": KEY, "FAME_STORAGE_PROFILE": "encrypted-sqlite"},
    )
    assert "revision 1. 3 is known, so 2 changes are lost" in said.output
    assert said.exit_code == 1
    assert type(place.refusal()) is StoreRolledBack
    place.obey(error, "accept")
    place.holds(OLD)


def test_a_copy_from_before_a_rotation_is_accepted_under_its_old_key(place: Place) -> None:
    async def rotate() -> None:
        async with provider_of(place.data) as provider:
            await provider.rotate(["notes"])

    asyncio.run(rotate())
    place.put_back(NOTES)
    place.obey(refused(place, StoreRolledBack), "accept")
    place.holds(OLD)


def test_exchanged_files_get_their_names_back(place: Place) -> None:
    for name, new in ((NOTES, "x"), (OTHER, NOTES), ("x", OTHER)):
        place.rename(name, new)
    refused(place, StoreSwapped)
    for name, new in ((NOTES, "x"), (OTHER, NOTES), ("x", OTHER)):
        place.rename(name, new)
    place.holds(NEW)


def test_the_only_copy_of_another_namespace_is_set_aside_and_not_deleted(place: Place) -> None:
    place.rename(OTHER, NOTES)
    place.obey(refused(place, StoreSwapped), "forget")
    refused(place, StoreMissing)
    [aside] = [path for path in place.data.glob("*.set-aside-*") if path.suffix != ".db-shm"]
    aside.rename(place.data / OTHER)
    place.holds([])


def test_a_plain_file_in_the_place_of_an_encrypted_one_is_set_aside(place: Place) -> None:
    (place.data / NOTES).unlink()
    with sqlite3.connect(place.data / NOTES) as connection:
        connection.execute("CREATE TABLE record (key)")
    connection.close()
    place.obey(refused(place, StoreNotEncrypted), "forget")
    assert list(place.data.glob(f"{NOTES}.set-aside-*"))
    place.holds([])


def test_a_file_of_another_node_is_set_aside(place: Place, tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path / "elsewhere", "x", namespace="third"))
    shutil.copy2(tmp_path / "elsewhere" / THIRD, place.data / THIRD)
    place.obey(refused(place, ForeignStore), "forget")
    place.holds(NEW)


def test_a_log_that_was_lost_after_a_kill_is_accepted(place: Place) -> None:
    killed = place.data.with_name("killed")

    async def work() -> None:
        async with provider_of(place.data) as provider:
            await (await provider.open("notes")).apply([Write("d", b"\x01\x00\x00{}")])
            shutil.copytree(place.data, killed)

    asyncio.run(work())
    shutil.rmtree(place.data)
    killed.rename(place.data)
    (place.data / f"{NOTES}-wal").unlink()
    place.obey(refused_in_some_way(place), "accept")
    place.holds(NEW)


def test_what_is_sound_of_a_damaged_file_is_exported_and_imported(
    place: Place, tmp_path: Path
) -> None:
    async def many() -> None:
        async with provider_of(place.data) as provider:
            notes = await provider.get_kv_store(Note, "many")
            keys = [f"{n:04}" for n in range(2000)]
            Random(1).shuffle(keys)
            for some in range(0, 2000, 100):
                await notes.set_many({k: Note(text="x" * 300) for k in keys[some : some + 100]})

    asyncio.run(many())
    path = place.data / NOTES.replace("notes", "many")
    out = tmp_path / "sound.jsonl"
    flip(place.data / NOTES, 30)  # another store is damaged too
    said = run(place.data, "store", "export", "many", "--sound", "--out", str(out))
    assert len(out.read_text().splitlines()) == 2000, said
    out.unlink()
    for part in (1, 3):
        flip(path, part * path.stat().st_size // 4)
    environment = {"FAME_STORAGE_MASTER_KEY": KEY, "FAME_STORAGE_PROFILE": "encrypted-sqlite"}
    arguments = ["store", "export", "many", "--sound", "--out", str(out), "--directory"]
    done = CliRunner().invoke(app, [*arguments, str(place.data)], env=environment)
    assert type(done.exception) is StoreDamaged
    assert re.search(r"up to \d+ records cannot be read", str(done.exception))
    lines = out.read_text().splitlines()
    keys = {json.loads(line)["key"] for line in lines}
    assert len(keys) == len(lines)
    assert 1950 < len(keys) < 2000
    asyncio.run(fill(tmp_path / "new"))
    run(tmp_path / "new", "store", "import", "many", str(out), "--partial")
    assert set(asyncio.run(contents(tmp_path / "new", "many"))) == keys


def test_the_state_of_an_agent_can_be_exported_and_imported(place: Place, tmp_path: Path) -> None:
    async def state(directory: Path) -> Note | None:
        async with provider_of(directory) as provider:
            store = await provider.own_store(Note, "__agent_counter")
            await store.create("first", Note(text="of this node"))
            return await store.get("state")

    async def make() -> None:
        async with provider_of(place.data) as provider:
            await (await provider.own_store(Note, "__agent_counter")).set("state", Note(text="x"))

    asyncio.run(make())
    out = tmp_path / "state.jsonl"
    run(place.data, "store", "export", "__agent_counter", "--out", str(out))
    asyncio.run(fill(tmp_path / "new"))
    run(tmp_path / "new", "store", "import", "__agent_counter", str(out))
    assert asyncio.run(state(tmp_path / "new")) == Note(text="x")


# --- space ------------------------------------------------------------------------------------


def test_compacting_gives_space_back_and_changes_nothing_else(place: Place) -> None:
    async def grow() -> None:
        async with provider_of(place.data) as provider:
            notes = await provider.get_kv_store(Note, "notes")
            await notes.set_many({f"{n:04}": Note(text="x" * 3000) for n in range(500)})
            await notes.delete_many([f"{n:04}" for n in range(500)])

    asyncio.run(grow())
    before = (place.data / NOTES).stat().st_size
    said = json.loads(run(place.data, "store", "compact", "notes", "--json"))
    assert said["before"] == before > 10 * said["bytes"]
    assert said["bytes"] == (place.data / NOTES).stat().st_size
    assert "other: " in run(place.data, "store", "compact")
    place.holds(NEW)


async def test_a_store_in_use_can_be_compacted(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set_many({f"{n:04}": Note(text="x" * 3000) for n in range(500)})
        await notes.delete_many([f"{n:04}" for n in range(490)])
        cursor = [each async for each in notes.scan()][-1].revision
        compacting = asyncio.create_task((await provider.open("notes")).compact())
        await asyncio.gather(*(notes.set(f"new {n}", Note(text="x")) for n in range(100)))
        await compacting
        assert await notes.count() == 110
        changes = [change.key async for change in _until(notes.watch(after=cursor), "new 99")]
        assert "new 99" in changes
        assert (tmp_path / NOTES).stat().st_size < 200_000
    assert len(await contents(tmp_path)) == 110


async def _until(changes: Any, key: str) -> AsyncIterator[Any]:
    async for change in changes:
        yield change
        if change.key == key:
            return


# --- the node's own ---------------------------------------------------------------------------


def test_an_older_node_meta_is_accepted_and_no_store_is_called_old(place: Place) -> None:
    place.put_back(META)
    error = refused(place, StoreRolledBack)
    place.obey(error, f"accept {NODE_META}")
    place.holds(NEW)


@pytest.mark.parametrize("how", ["missing", "header", "page"])
def test_a_lost_node_meta_is_forgotten_and_no_store_is_called_old(place: Place, how: str) -> None:
    if how == "missing":
        (place.data / META).unlink()
    else:
        flip(place.data / META, 3 if how == "header" else 100)
    place.obey(place.refusal(), f"forget {NODE_META}")
    place.holds(NEW)


def test_a_broken_audit_log_goes_on_with_the_lines_that_are_sound(place: Place) -> None:
    async def remove(line: str) -> None:
        async with provider_of(place.data) as provider:
            await (await provider.open(NODE_META)).apply([Write(line, None)])

    asyncio.run(remove("audit/0000000002"))
    place.obey(refused(place, AuditBroken), f"accept {NODE_META}")
    place.holds(NEW)


def test_an_older_keystore_is_accepted_and_what_it_does_not_know_is_set_aside(
    place: Place,
) -> None:
    asyncio.run(fill(place.data, "x", namespace="third"))
    place.put_back(KEYSTORE)
    place.obey(refused(place, KeystoreOlder), "accept __keystore")
    place.obey(refused(place, ForeignStore), "forget third")
    place.holds(NEW)


def test_a_missing_or_damaged_keystore_is_put_back(place: Place) -> None:
    shutil.copy2(place.data / KEYSTORE, place.backup / KEYSTORE)
    (place.data / KEYSTORE).unlink()
    refused(place, KeystoreMissing)
    place.put_back(KEYSTORE)
    place.holds(NEW)
    shutil.copy2(place.data / KEYSTORE, place.backup / KEYSTORE)
    flip(place.data / KEYSTORE, 5000)
    refused(place, StoreDamaged)
    place.put_back(KEYSTORE)
    place.holds(["a", "b", "c", "written"])


def test_a_directory_put_back_whole_is_used_once_the_note_of_commits_is_deleted(
    place: Place,
) -> None:
    shutil.rmtree(place.data)
    shutil.copytree(place.backup, place.data)
    place.holds(OLD, other=OLD)


def test_a_plain_directory_has_the_same_ways_out(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    plain: dict[str, Any] = {"profile": "sqlite", "key": None}

    def lead_out(command: str) -> None:
        with pytest.raises(StorageError) as raised:
            asyncio.run(contents(data, **plain))
        assert f"strongroom store {command}" in (raised.value.remedy or "")
        arguments = [*f"store {command} --yes --directory".split(), str(data)]
        done = CliRunner().invoke(app, arguments, env={"FAME_STORAGE_PROFILE": "sqlite"})
        assert done.exit_code == 0, done.exception

    asyncio.run(fill(data, "a", **plain))
    asyncio.run(fill(data, "a", namespace="other", **plain))
    shutil.copytree(data, backup)
    asyncio.run(fill(data, "b", **plain))
    shutil.copy2(backup / "notes.db", data / "notes.db")
    lead_out("accept notes")
    assert sorted(asyncio.run(contents(data, **plain))) == ["a"]
    shutil.copy2(backup / "__node_meta.db", data / "__node_meta.db")
    lead_out("accept __node_meta")
    flip(data / "notes.db", 3)
    lead_out("forget notes")
    (data / "__node_meta.db").unlink()
    lead_out("forget __node_meta")
    assert asyncio.run(contents(data, **plain)) == {}
    assert sorted(asyncio.run(contents(data, "other", **plain))) == ["a"]


# --- the settings -----------------------------------------------------------------------------


def test_the_right_key_or_profile_opens_it(place: Place) -> None:
    refused(place, WrongMasterKey, key="ff" * 32)
    error = refused(place, ProfileMismatch, key=None, profile="sqlite")
    assert "FAME_STORAGE_PROFILE=encrypted-sqlite" in (error.remedy or "")
    place.holds(NEW)


# --- the commands -----------------------------------------------------------------------------


def test_what_cannot_be_accepted_or_forgotten_is_refused_and_nothing_changes(place: Place) -> None:
    def fails(*arguments: str) -> str:
        env = {"FAME_STORAGE_MASTER_KEY": KEY, "FAME_STORAGE_PROFILE": "encrypted-sqlite"}
        done = CliRunner().invoke(
            app, ["store", *arguments, "--yes", "--directory", str(place.data)], env=env
        )
        assert done.exit_code != 0
        return str(done.exception)

    assert "no namespace 'absent'" in fails("accept", "absent")
    assert "no namespace 'absent'" in fails("forget", "absent")
    assert "cannot be forgotten" in fails("forget", "__keystore")
    place.holds(NEW)
    flip(place.data / NOTES, 5000)
    assert "is damaged" in fails("accept", "notes")
    shutil.copy2(place.data / OTHER, place.data / NOTES)
    assert "is the file of the namespace 'other'" in fails("accept", "notes")


def test_both_leave_a_line_in_the_audit_log(place: Place) -> None:
    place.put_back(NOTES)
    run(place.data, "store", "accept", "notes", "--yes")
    run(place.data, "store", "forget", "other", "--yes")

    async def events() -> list[tuple[str, str | None]]:
        async with provider_of(place.data) as provider:
            await provider.verify_audit()
            return [(line.event, line.namespace) for line in await provider.audit()]

    found = asyncio.run(events())
    assert ("accepted", "notes") in found
    assert ("forgotten", "other") in found


ELSEWHERE = {
    "DirectoryInUse": "tests/storage/test_life.py",
    "FilesystemUnsafe": "tests/disk/test_strange_files.py",
    "FormatUnsupported": "a newer Strongroom is the way out",
    "StoreUnavailable": "tests/storage/test_refusing_disk.py",
    "StoreClosed": "tests/storage/test_life.py",
    "StoreForked": "tests/storage/test_life.py",
}
"""Errors whose way out is another process, disk or version, or a correction of the program."""


def test_every_error_of_a_directory_has_its_way_out() -> None:
    def family(kind: type[StrongroomError]) -> Iterator[type[StrongroomError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from family(each)

    walked = set(re.findall(r"refused\(place, (\w+)", Path(__file__).read_text()))
    known = {each.__name__ for base in (DirectoryError, StoreError) for each in family(base)}
    assert known - {"DirectoryError", "StoreError"} == (walked - {"AuditBroken"}) | ELSEWHERE.keys()
    assert all(hasattr(errors, name) for name in walked)
