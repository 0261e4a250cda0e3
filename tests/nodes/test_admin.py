"""An operator reaches a running node over its admin socket, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from strongroom.admin import socket as admin
from strongroom.admin.commands import Progress
from strongroom.admin.socket import STATUS, admin_socket, operate
from strongroom.errors import InvalidNamespace, NotSupported, OwnerUnreachable, SettingsError
from strongroom.keys.master import new_master_key
from strongroom.nodes.node import Node
from strongroom.settings import Settings, StorageSettings
from strongroom.storage.provider import open_provider
from support.notes import Note


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> StorageSettings:
    return StorageSettings(
        profile="encrypted-sqlite", directory=tmp_path / "data", master_key=new_master_key()
    )


@pytest.fixture
async def node(settings: StorageSettings) -> AsyncIterator[Node]:
    async with Node(Settings(storage=settings)) as running:
        assert running.storage is not None
        notes = await running.storage.get_kv_store(Note, "notes")
        await notes.set_many({f"{n:03}": Note(text=f"note {n}") for n in range(600)})
        yield running


async def ask_for(ask: Any, command: str, **arguments: Any) -> list[Any]:
    items = [item async for item in ask(command, **arguments)]
    return [msgspec.json.decode(item) for item in items if not isinstance(item, Progress)]


async def test_a_running_node_answers_with_what_it_keeps(
    node: Node, settings: StorageSettings
) -> None:
    async with operate(settings) as ask:
        [status] = await ask_for(ask, STATUS)
        assert status["id"] == node.id
        assert len(await ask_for(ask, "store.scan", namespace="notes")) == 600
        assert len(await ask_for(ask, "store.scan", namespace="notes", limit=300)) == 300
        [record] = await ask_for(ask, "store.get", namespace="notes", key="007")
        assert record["value"] == {"text": "note 7"}
        [line, *_] = await ask_for(ask, "audit.show")
        assert line["event"] == "opened"


async def test_keys_rotate_through_the_node_that_runs(
    node: Node, settings: StorageSettings
) -> None:
    async with operate(settings) as ask:
        rotated = await ask_for(ask, "key.rotate-data")
        assert {"notes", "__node_meta"} <= {item["namespace"] for item in rotated}
        [changed] = await ask_for(ask, "key.rotate-master", master_key=new_master_key())
        assert len(changed["fingerprint"]) == 16
        states = await ask_for(ask, "key.status")
        assert sum(item["records"] for item in states if item["namespace"] == "notes") == 600
        findings = await ask_for(ask, "doctor")
        assert {finding["level"] for finding in findings} == {"ok", "note"}
        [verified] = await ask_for(ask, "audit.verify")
        assert verified["lines"] > 4


async def test_errors_come_over_as_what_they_are(node: Node, settings: StorageSettings) -> None:
    async with operate(settings) as ask:
        with pytest.raises(InvalidNamespace, match="strongroom store ls"):
            await ask_for(ask, "store.get", namespace="nots", key="a")
        with pytest.raises(NotSupported, match="no command"):
            await ask_for(ask, "store.burn")
        with pytest.raises(Exception, match="unexpected keyword"):
            await ask_for(ask, "store.ls", colour="red")
        assert len(await ask_for(ask, "store.ls")) == 3


async def test_a_watcher_who_leaves_is_let_go(node: Node, settings: StorageSettings) -> None:
    async with operate(settings) as ask:
        changes = ask("store.watch", namespace="notes", after=600)
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.01)
        assert node.storage is not None
        await (await node.storage.get_kv_store(Note, "notes")).set("new", Note(text="new"))
        assert msgspec.json.decode(await first)["key"] == "new"
    await node.stop()  # does not wait for the watcher


async def test_an_export_is_one_moment_while_others_write(
    node: Node, settings: StorageSettings
) -> None:
    assert node.storage is not None
    notes = await node.storage.get_kv_store(Note, "notes")
    async with operate(settings) as ask:
        keys = []
        async for item in ask("store.export", namespace="notes"):
            keys.append(msgspec.json.decode(item)["key"])
            if len(keys) == 1:
                await notes.set("000", Note(text="changed"))
                await notes.set("999", Note(text="new"))
                await notes.delete("599")
        assert keys == [f"{n:03}" for n in range(600)]


async def test_another_user_is_not_answered(
    node: Node, settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "_peer", lambda _: 12345)
    async with operate(settings) as ask:
        with pytest.raises(OwnerUnreachable):
            await ask_for(ask, STATUS)


async def test_the_socket_goes_with_the_node(
    settings: StorageSettings, runtime: Path, tmp_path: Path
) -> None:
    async with Node(Settings(storage=settings)):
        [socket] = (runtime / "strongroom").iterdir()
        assert len(str(socket.name)) < 60
    assert not list((runtime / "strongroom").iterdir())
    with pytest.raises(OwnerUnreachable, match="No node runs"):
        async with operate(settings, running=True):
            pass


async def test_a_folder_of_sockets_that_others_can_use_is_refused(
    settings: StorageSettings, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (runtime / "strongroom").mkdir(mode=0o755)
    async with Node(Settings(storage=settings)):
        assert not list((runtime / "strongroom").iterdir())
    assert "no admin socket" in caplog.text


async def test_a_directory_at_rest_is_opened_for_the_command(settings: StorageSettings) -> None:
    provider = await open_provider(settings)
    await provider.get_kv_store(Note, "notes")
    await provider.close()
    async with operate(settings) as ask:
        await ask_for(ask, "store.put", namespace="notes", key="a", text='{"text": "Hello"}')
        [record] = await ask_for(ask, "store.get", namespace="notes", key="a")
        assert record["value"] == {"text": "Hello"}


async def test_an_export_that_is_left_does_not_hold_up_the_end(settings: StorageSettings) -> None:
    provider = await open_provider(settings)
    store = await provider.get_kv_store(Note, "notes")
    await store.set_many({f"{n:04}": Note(text="note") for n in range(1000)})
    await provider.close()
    with pytest.raises(BrokenPipeError):
        async with asyncio.timeout(10), operate(settings) as ask:
            async for _ in ask("store.export", namespace="notes"):
                raise BrokenPipeError


async def test_a_directory_without_data_is_not_made(tmp_path: Path) -> None:
    for directory in (None, tmp_path / "nothing"):
        with pytest.raises(SettingsError):
            async with operate(StorageSettings(profile="sqlite", directory=directory)):
                pass
    assert not (tmp_path / "nothing").exists()


async def test_an_owner_without_a_socket_is_told_of(settings: StorageSettings) -> None:
    provider = await open_provider(settings)
    try:
        with pytest.raises(OwnerUnreachable, match="in use"):
            async with operate(settings):
                pass
    finally:
        await provider.close()


async def test_memory_has_no_socket(runtime: Path) -> None:
    provider = await open_provider(StorageSettings())
    async with admin_socket(provider, dict):
        assert not list(runtime.iterdir())
    await provider.close()


async def test_a_runtime_folder_with_too_long_a_name_is_passed_over(
    settings: StorageSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    async with Node(Settings(storage=settings)) as running, operate(settings) as ask:
        [status] = await ask_for(ask, STATUS)
        assert status["id"] == running.id
    assert not list(long.iterdir())
