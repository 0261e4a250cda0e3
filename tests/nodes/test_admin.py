"""An operator reaches a running node over its admin socket, and nobody else does."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from strongroom.admin import health, keys, records
from strongroom.admin.command import Administered, Command, OnProgress, Progress, with_progress
from strongroom.admin.socket import COMMANDS, SOCKET, Client, admin_socket, connect
from strongroom.errors import (
    InvalidNamespace,
    NotSupported,
    OwnerUnreachable,
    SettingsError,
    StoreMissing,
    StrongroomError,
)
from strongroom.keys.master import new_master_key
from strongroom.nodes.node import Node
from strongroom.settings import Settings, StorageSettings
from strongroom.storage.memory import MemoryProvider
from strongroom.storage.provider import open_provider
from support.notes import Note


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where XDG_RUNTIME_DIR says that sockets belong."""
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


async def ask_for(client: Client, command: Command[Any], **arguments: Any) -> list[Any]:
    items = [item async for item in client.request(command, **arguments)]
    return [msgspec.json.decode(item) for item in items if not isinstance(item, Progress)]


async def say(settings: StorageSettings, line: bytes) -> None:
    """Send a line to the node's socket, and raise the error in its answer."""
    assert settings.directory is not None
    reader, writer = await asyncio.open_unix_connection(settings.directory / SOCKET)
    writer.write(line + b"\n")
    reply = json.loads(await reader.readline())
    writer.close()
    raise StrongroomError.from_json(reply["error"])


@Command
async def lose_a_store(node: Administered) -> AsyncGenerator[Any, None]:
    raise StoreMissing("lost.db does not exist.", remedy="look for it", path=Path("lost.db"))
    yield  # type: ignore[unreachable]


@pytest.fixture(autouse=True)
def one_more_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, lose_a_store.name, lose_a_store)


async def test_a_running_node_answers_with_what_it_keeps(
    node: Node, settings: StorageSettings
) -> None:
    async with connect(settings) as client:
        [status] = await ask_for(client, health.status)
        assert status["id"] == node.id
        assert len(await ask_for(client, records.scan, namespace="notes")) == 600
        assert len(await ask_for(client, records.scan, namespace="notes", limit=300)) == 300
        [record] = await ask_for(client, records.get, namespace="notes", key="007")
        assert record["value"] == {"text": "note 7"}
        [line, *_] = await ask_for(client, keys.show_audit)
        assert line["event"] == "opened"


async def test_keys_rotate_through_the_node_that_runs(
    node: Node, settings: StorageSettings
) -> None:
    async with connect(settings) as client:
        rotated = await ask_for(client, keys.rotate_data)
        assert {"notes", "__node_meta"} <= {item["namespace"] for item in rotated}
        [changed] = await ask_for(client, keys.rotate_master, master_key=new_master_key())
        assert len(changed["fingerprint"]) == 16
        states = await ask_for(client, keys.status)
        assert sum(item["records"] for item in states if item["namespace"] == "notes") == 600
        findings = await ask_for(client, health.doctor)
        assert {finding["level"] for finding in findings} == {"ok", "note"}
        [verified] = await ask_for(client, keys.verify_audit)
        assert verified["lines"] > 4


async def test_errors_come_over_as_what_they_are(node: Node, settings: StorageSettings) -> None:
    async with connect(settings) as client:
        with pytest.raises(InvalidNamespace, match="strongroom store ls"):
            await ask_for(client, records.get, namespace="nots", key="a")
        with pytest.raises(StoreMissing) as caught:
            await ask_for(client, lose_a_store)
        assert caught.value.path == Path("lost.db")
        assert caught.value.remedy == "look for it"
        assert len(await ask_for(client, records.ls)) == 3


async def test_a_command_that_the_node_does_not_have_is_refused(
    node: Node, settings: StorageSettings
) -> None:
    with pytest.raises(NotSupported, match=r"'records\.burn'.*Try: "):
        await say(settings, b'{"command": "records.burn"}')


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (b'{"namespace": "notes"}', "`key`"),
        (b'{"namespace": "notes", "key": 7}', r"`\$.key`"),
        (b'{"namespace": "notes", "key": "a", "colour": "red"}', "`colour`"),
        (b"[]", "object"),
    ],
)
async def test_wrong_arguments_are_named(
    node: Node, settings: StorageSettings, arguments: bytes, says: str
) -> None:
    with pytest.raises(
        StrongroomError, match=rf"records.get.*{says}.*Try: records.get\("
    ) as caught:
        await say(settings, b'{"command": "records.get", "arguments": ' + arguments + b"}")
    assert type(caught.value) is StrongroomError


async def test_a_line_that_is_not_a_request_gets_an_error(
    node: Node, settings: StorageSettings
) -> None:
    for line in (b"nonsense", b"{}", b'{"command": 7}'):
        with pytest.raises(StrongroomError):
            await say(settings, line)


async def test_a_watcher_who_leaves_is_let_go(node: Node, settings: StorageSettings) -> None:
    async with connect(settings) as client:
        changes = client.request(records.watch, namespace="notes", after=600)
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
    async with connect(settings) as client:
        exported = []
        async for item in client.request(records.export, namespace="notes"):
            if isinstance(item, Progress):
                continue
            exported.append(msgspec.json.decode(item)["key"])
            if len(exported) == 1:
                await notes.set("000", Note(text="changed"))
                await notes.set("999", Note(text="new"))
                await notes.delete("599")
        assert exported == [f"{n:03}" for n in range(600)]


async def test_another_user_is_not_answered(
    node: Node, settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strongroom.admin.socket._check_owner", lambda *_: None)
    monkeypatch.setattr("strongroom.admin.socket._peer", lambda _: 12345)
    async with connect(settings) as client:
        with pytest.raises(OwnerUnreachable):
            await ask_for(client, health.status)


FAKE_NODE = """
import json, os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as fake:
    fake.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o777)
    fake.listen()
    print("ready", flush=True)
    with fake.accept()[0] as operator:
        operator.settimeout(5)
        print(operator.recv(4096), flush=True)
        operator.sendall(b'{"item": {"fingerprint": "done", "generation": 1}}\\n{"end": true}\\n')
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("owner", [0, 12345])
async def test_a_node_of_another_user_gets_no_key_and_is_not_believed(
    settings: StorageSettings, owner: int
) -> None:
    provider = await open_provider(settings)
    await provider.close()
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is root's alone
        directory = Path(folder) / "data"
        shutil.copytree(settings.directory or Path(), directory)
        for path in (directory.parent, directory):
            os.chown(path, owner, owner)
            path.chmod(0o777)
        with subprocess.Popen(
            [sys.executable, "-c", FAKE_NODE, str(directory / SOCKET)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as fake:
            assert fake.stdout is not None
            assert fake.stdout.readline() == b"ready\n"
            with pytest.raises(OwnerUnreachable, match=r"user 65534's.*Nothing was sent"):
                async with connect(replace(settings, directory=directory)) as client:
                    await ask_for(client, keys.rotate_master, master_key=new_master_key())
            assert await asyncio.to_thread(fake.stdout.readline) == b"b''\n"


STUCK_NODE = """
import asyncio, os, sys
from pathlib import Path
from strongroom.nodes.node import Node
from strongroom.settings import Settings, StorageSettings

async def main():
    storage = StorageSettings(profile="sqlite", directory=Path(sys.argv[1]))
    async with Node(Settings(storage=storage)):
        print("ready", flush=True)
        await asyncio.Future()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_node_that_is_stuck_is_reported_after_some_seconds(
    settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strongroom.admin.socket.SILENT_SECONDS", 2.5)
    with subprocess.Popen(
        [sys.executable, "-c", STUCK_NODE, str(settings.directory)], stdout=subprocess.PIPE
    ) as node:
        try:
            assert node.stdout is not None
            assert node.stdout.readline() == b"ready\n"
            async with connect(settings) as client:
                changes = client.request(records.watch, namespace="__node_meta")
                with pytest.raises(TimeoutError):  # silence alone does not make it stuck
                    await asyncio.wait_for(anext(changes), 5)
            node.send_signal(signal.SIGSTOP)
            with pytest.raises(OwnerUnreachable, match=r"stopped or stuck.*Try: "):
                async with connect(settings) as client:
                    await ask_for(client, health.status)
        finally:
            node.kill()
    async with connect(replace(settings, profile="sqlite", master_key=None)) as client:
        assert await ask_for(client, records.ls)  # the socket of a killed node is in nobody's way


async def test_the_socket_is_in_the_data_directory_and_goes_with_the_node(
    settings: StorageSettings, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.directory is not None
    path = settings.directory / SOCKET
    async with Node(Settings(storage=settings)) as running:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert not list(runtime.iterdir())
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
        async with connect(settings) as client:
            [status] = await ask_for(client, health.status)
            assert status["id"] == running.id
    assert not path.exists()
    with pytest.raises(OwnerUnreachable, match="No node runs"):
        async with connect(settings) as client:
            await ask_for(client, health.status)


async def test_a_link_to_the_socket_of_another_node_is_refused(
    node: Node, settings: StorageSettings, tmp_path: Path
) -> None:
    other = replace(settings, directory=tmp_path / "other")
    await (await open_provider(other)).close()
    (tmp_path / "other" / SOCKET).symlink_to(tmp_path / "data" / SOCKET)
    with pytest.raises(OwnerUnreachable, match="a link"):
        async with connect(other) as client:
            await ask_for(client, keys.rotate_master, master_key=new_master_key())


async def test_a_place_for_the_socket_that_is_taken_is_reported(
    settings: StorageSettings, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings.directory is not None
    settings.directory.mkdir(mode=0o700)
    (settings.directory / SOCKET / "folder").mkdir(parents=True)
    async with Node(Settings(storage=settings)):
        pass
    assert "no admin socket" in caplog.text


async def test_a_directory_at_rest_is_opened_for_the_command(settings: StorageSettings) -> None:
    provider = await open_provider(settings)
    await provider.get_kv_store(Note, "notes")
    await provider.close()
    async with connect(settings) as client:
        await ask_for(client, records.put, namespace="notes", key="a", text='{"text": "Hello"}')
        [record] = await ask_for(client, records.get, namespace="notes", key="a")
        assert record["value"] == {"text": "Hello"}


async def test_an_export_that_is_left_does_not_hold_up_the_end(settings: StorageSettings) -> None:
    provider = await open_provider(settings)
    store = await provider.get_kv_store(Note, "notes")
    await store.set_many({f"{n:04}": Note(text="note") for n in range(1000)})
    await provider.close()
    with pytest.raises(BrokenPipeError):
        async with asyncio.timeout(10), connect(settings) as client:
            async for _ in client.request(records.export, namespace="notes"):
                raise BrokenPipeError


async def test_a_command_that_is_left_ends_its_thread() -> None:
    ended = threading.Event()

    def read(report: OnProgress) -> None:
        try:
            while True:
                report("notes", 1, 2)
                time.sleep(0.001)
        finally:
            ended.set()

    async def work(report: OnProgress) -> list[str]:
        await asyncio.to_thread(read, report)
        return []

    items = with_progress(work)
    assert await anext(items) == Progress("notes", 1, 2)
    await items.aclose()
    assert await asyncio.to_thread(ended.wait, 5)


async def test_a_directory_without_data_is_not_made(tmp_path: Path) -> None:
    for directory in (None, tmp_path / "nothing"):
        with pytest.raises(SettingsError):
            async with connect(StorageSettings(profile="sqlite", directory=directory)):
                pass
    assert not (tmp_path / "nothing").exists()


async def test_a_provider_of_ones_own_needs_no_directory(tmp_path: Path) -> None:
    own = "strongroom.storage.memory:MemoryProvider"
    async with connect(StorageSettings(profile=own)) as client:
        await ask_for(client, records.put, namespace="notes", key="a", text="1")
        [listed] = await ask_for(client, records.ls)
        assert listed == {"namespace": "notes", "records": 1}
    with pytest.raises(SettingsError, match="nothing"):
        async with connect(StorageSettings(profile=own, directory=tmp_path / "nothing")):
            pass


async def test_an_owner_without_a_socket_is_told_of(settings: StorageSettings) -> None:
    provider = await open_provider(settings)
    try:
        with pytest.raises(OwnerUnreachable, match="in use"):
            async with connect(settings) as client:
                await ask_for(client, records.ls)
    finally:
        await provider.close()


async def test_memory_has_no_socket(runtime: Path) -> None:
    provider = await open_provider(StorageSettings())
    async with admin_socket(provider, Node()):
        assert not list(runtime.iterdir())
    await provider.close()


async def test_a_directory_with_a_long_path_has_a_socket_too(
    settings: StorageSettings, tmp_path: Path
) -> None:
    long = replace(settings, directory=tmp_path / ("long" * 20) / ("path" * 20))
    async with Node(Settings(storage=long)) as running, connect(long) as client:
        [status] = await ask_for(client, health.status)
        assert status["id"] == running.id
    assert long.directory is not None
    assert not (long.directory / SOCKET).exists()


async def test_record_commands_work_on_a_provider_without_files() -> None:
    provider = MemoryProvider()
    memory = Administered(provider.settings, provider)

    async def run(command: Command[Any], **arguments: Any) -> list[Any]:
        items = [item async for item in command.run(memory, command.pack(**arguments))]
        return [
            json.loads(msgspec.json.encode(item))
            for item in items
            if not isinstance(item, Progress)
        ]

    record = {"key": "b", "value": {"text": "two"}, "expires": "2100-01-01T00:00:00Z"}
    await (await provider.get_kv_store(Note, "notes")).set("a", Note(text="one"))
    assert await run(records.import_, namespace="notes", records=[record]) == [
        {"stored": 1, "replaced": 0}
    ]
    assert await run(records.ls) == [{"namespace": "notes", "records": 2}]
    assert await run(records.stats, namespace="notes") == [
        {"namespace": "notes", "records": 2, "revision": 2}
    ]
    assert [r["key"] for r in await run(records.scan, namespace="notes", reverse=True)] == [
        "b",
        "a",
    ]
    assert [r["value"]["text"] for r in await run(records.export, namespace="notes")] == [
        "one",
        "two",
    ]
    await run(records.put, namespace="notes", key="b", text='{"text": "three"}')
    [record] = await run(records.get, namespace="notes", key="b")
    assert (record["value"], record["expires"]) == ({"text": "three"}, "2100-01-01T00:00:00Z")
    assert await run(records.delete, namespace="notes", keys=["a", "x"]) == [
        {"key": "a", "deleted": True},
        {"key": "x", "deleted": False},
    ]
    changes = records.watch.run(memory, records.watch.pack(namespace="notes", after=0))
    assert [(await anext(changes)).key for _ in range(2)] == ["b", "a"]
    await changes.aclose()
    await run(records.drop, namespace="notes")
    assert await run(records.ls) == []
    for command in (keys.status, keys.show_audit, health.doctor):
        with pytest.raises(NotSupported, match=r"MemoryProvider has no keystore.*Try: "):
            await run(command)
    await provider.close()
