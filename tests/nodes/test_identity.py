"""A directory belongs to one node, and is given to another only on purpose."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from strongroom import Fabric
from strongroom.cli.main import app
from strongroom.errors import DirectoryError
from strongroom.settings import Settings, StorageSettings
from strongroom.storage.provider import open_provider
from strongroom.storage.sqlite.provider import SqliteProvider

KEY = "00112233445566778899aabbccddeeff" * 2


class Note(BaseModel):
    text: str


def storage(directory: Path) -> StorageSettings:
    return StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)


async def start(directory: Path, node_id: str | None) -> str:
    """Start and stop a node, which stores its id. Returns the id that it had."""
    async with Fabric(Settings(node_id=node_id, storage=storage(directory))) as fabric:
        provider = fabric.storage
        notes = await provider.get_kv_store(Note, "notes")
        if await notes.get("owner") is None:
            await notes.set("owner", Note(text=fabric.id))
        return fabric.id


async def test_the_exchanged_directories_of_two_nodes_are_refused(tmp_path: Path) -> None:
    one, two, aside = tmp_path / "one", tmp_path / "two", tmp_path / "aside"
    await start(one, "one")
    await start(two, "two")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    for node_id, directory in (("one", one), ("two", two)):
        with pytest.raises(DirectoryError, match=f"FAME_NODE_ID is '{node_id}'.*Try: ") as caught:
            await start(directory, node_id)
        assert caught.value.path == directory
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    assert await start(one, "one") == "one"
    assert await start(two, "two") == "two"


async def test_a_node_without_a_chosen_id_is_the_one_in_its_directory(tmp_path: Path) -> None:
    made = await start(tmp_path, None)
    assert await start(tmp_path, None) == made
    assert await start(tmp_path, made) == made


def test_adopt_gives_a_directory_with_its_data_to_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(start(tmp_path, "one"))
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY", KEY)
    said = CliRunner().invoke(app, ["store", "adopt", "two", "--directory", str(tmp_path)])
    assert said.output == "The directory of one is now that of two.\n"
    assert asyncio.run(start(tmp_path, "two")) == "two"
    with pytest.raises(DirectoryError):
        asyncio.run(start(tmp_path, "one"))
    owner, events = asyncio.run(look(tmp_path))
    assert owner == "one"
    assert "adopted" in events


async def look(directory: Path) -> tuple[str, list[str]]:
    """The owner that was stored, and the events in the audit log."""
    provider = await open_provider(storage(directory))
    assert isinstance(provider, SqliteProvider)
    notes = await provider.get_kv_store(Note, "notes")
    note = await notes.get("owner")
    events = [line.event for line in await provider.audit()]
    await provider.close()
    assert note is not None
    return note.text, events
