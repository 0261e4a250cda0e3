"""Keys change while the node is in use, and no record is lost, wherever it is killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from strongroom.errors import (
    InvalidNamespace,
    NotSupported,
    StoreRolledBack,
    StoreUnavailable,
    WrongMasterKey,
)
from strongroom.keys.keystore import KeyState
from strongroom.keys.master import MasterKey, new_master_key
from strongroom.storage.records import Write
from strongroom.testing import leak_scan
from support.notes import KEY, Note, provider_of

OTHER = new_master_key()


async def fill(opened: Any, count: int, namespace: str = "notes", size: int = 1000) -> None:
    store = await opened.get_kv_store(Note, namespace)
    await store.set_many({f"{n:06}": Note(text=f"{n} " * (size // 4)) for n in range(count)})


async def keys(opened: Any, namespace: str = "notes") -> list[str]:
    return list(await (await opened.get_kv_store(Note, namespace)).list())


async def test_the_master_key_changes_on_a_running_node(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 10)
        await opened.change_master(MasterKey(OTHER))
        await fill(opened, 20)
    with pytest.raises(WrongMasterKey):
        async with provider_of(tmp_path, KEY):
            pass
    async with provider_of(tmp_path, OTHER) as opened:
        assert len(await keys(opened)) == 20


async def test_the_previous_master_key_is_accepted_for_one_start(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 10)
    async with provider_of(tmp_path, OTHER, previous_master_key=KEY) as opened:
        assert len(await keys(opened)) == 10
        assert [line.event for line in await opened.audit()][-2:] == [
            "master key changed",
            "opened",
        ]
    with pytest.raises(WrongMasterKey):
        async with provider_of(tmp_path, KEY):
            pass
    async with provider_of(tmp_path, OTHER) as opened:
        assert len(await keys(opened)) == 10


async def test_a_data_key_changes_while_others_write_and_read(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 4000)
        store = await opened.get_kv_store(Note, "notes")
        old = opened.files.keystore.entries["notes"].key
        written, stop, seen = 0, asyncio.Event(), []

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                await store.set(f"new-{written:06}", Note(text="new"))
                written += 1

        async def read() -> None:
            while not stop.is_set():
                assert await store.get("000007") is not None
                assert await store.count("0") == 4000

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            tasks.create_task(read())
            assert await opened.rotate(["notes"], lambda *now: seen.append(now)) == ["notes"]
            during = written
            await store.set("last", Note(text="last"))
            stop.set()
        assert during > 0
        assert seen[-1][1] == seen[-1][2] > 1000
        assert len(await keys(opened)) == 4000 + written + 1
        entry = opened.files.keystore.entries["notes"]
        assert entry.state is KeyState.LIVE
        assert entry.key.id != old.id
        assert [retired.key.id for retired in opened.files.keystore.retired] == [old.id]
    async with provider_of(tmp_path) as opened:
        assert len(await keys(opened)) == 4000 + written + 1
    assert (tmp_path / "notes_encrypted_value.db").read_bytes()[3:11] == entry.key.file_id


async def test_a_rotation_leaves_no_file_open(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 10)
        await opened.rotate(["notes"])
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            await opened.rotate(["notes"])
            assert len(await keys(opened)) == 10
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # a scanner's


async def test_all_namespaces_rotate_including_those_of_the_node(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 10)
        await fill(opened, 10, "more")
        before = {name: entry.key.id for name, entry in opened.files.keystore.entries.items()}
        assert await opened.rotate() == ["__node_meta", "more", "notes"]
        await fill(opened, 12)
    async with provider_of(tmp_path) as opened:
        after = {name: entry.key.id for name, entry in opened.files.keystore.entries.items()}
        assert not set(before.values()) & set(after.values())
        assert (len(await keys(opened)), len(await keys(opened, "more"))) == (12, 10)
    assert not list(tmp_path.glob(".*"))
    assert not leak_scan(tmp_path, ["1 1 1 1 1 1"])


async def test_a_rotation_that_failed_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider_of(tmp_path) as opened:
        for name in ("a", "b", "c"):
            await fill(opened, 10, name)

        def stop(namespace: str, *_: int) -> None:
            if namespace == "b":
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError):
            await opened.rotate(None, stop)
        assert not list(tmp_path.glob(".*"))
        await fill(opened, 12, "b")
        assert await opened.rotate() == ["b", "c"]
    async with provider_of(tmp_path) as opened:
        assert [len(await keys(opened, name)) for name in ("a", "b", "c")] == [10, 12, 10]


async def test_a_node_that_stops_leaves_a_rotation_for_later(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 4000)
        begun = asyncio.Event()
        rotating = asyncio.create_task(opened.rotate(["notes"], lambda *_: begun.set()))
        await begun.wait()
    with pytest.raises(Exception, match="closed"):
        await rotating
    assert not list(tmp_path.glob(".*"))
    async with provider_of(tmp_path) as opened:
        assert await opened.rotate() == ["notes"]
        assert len(await keys(opened)) == 4000


async def test_a_rotation_whose_caller_leaves_lets_go_of_its_copy(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 4000)
        begun = asyncio.Event()
        rotating = asyncio.create_task(opened.rotate(["notes"], lambda *_: begun.set()))
        await begun.wait()
        rotating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rotating
        assert not list(tmp_path.glob(".*"))
        await fill(opened, 4010)
        await opened.drop("notes")
    async with provider_of(tmp_path) as opened:
        assert await opened.namespaces() == ["__node_meta"]


async def test_rotating_what_cannot_rotate_is_an_error(tmp_path: Path) -> None:
    async with provider_of(tmp_path / "a") as opened:
        with pytest.raises(InvalidNamespace, match="nothing"):
            await opened.rotate(["nothing"])
    async with provider_of(tmp_path / "b", None, profile="sqlite") as opened:
        with pytest.raises(NotSupported):
            await opened.rotate()


def sweep(tmp_path: Path, what: str, points: str) -> dict[str, Any]:
    """Kill a node at each point of a change of keys, and open what is left."""
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, what, points],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["killed"] > 0
    return result


@pytest.mark.parametrize("what", ["data", "master"])
def test_a_kill_in_mid_rotation_loses_nothing(tmp_path: Path, what: str) -> None:
    sweep(tmp_path, what, "some")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "master"])
def test_a_kill_at_any_step_of_a_rotation_loses_nothing(tmp_path: Path, what: str) -> None:
    result = sweep(tmp_path, what, "all")
    assert {"old", "new"} <= set(result["states"])


async def test_a_copy_from_before_a_rotation_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "notes_encrypted_value.db"
    async with provider_of(tmp_path) as opened:
        await fill(opened, 10)
    old = path.read_bytes()
    async with provider_of(tmp_path) as opened:
        await opened.rotate()
    path.write_bytes(old)
    with pytest.raises(StoreRolledBack, match="before its data key was rotated"):
        async with provider_of(tmp_path):
            pass


async def test_a_store_whose_writer_broke_opens_again_while_it_is_scanned(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise apsw.IOError("injected")

    async with provider_of(tmp_path) as opened:
        await fill(opened, 1000)
        store = await opened.open("notes")
        for number in range(3):
            scans = [asyncio.create_task(store.scan(limit=None, max_bytes=None)) for _ in range(6)]
            with pytest.raises(StoreUnavailable):
                await store.connections.run_on_writer(fail)
            await store.apply([Write(f"new {number}", b"new")])
            for page in await asyncio.gather(*scans):
                assert len(page.records) >= 1000
        await opened.rotate(["notes"])
        assert await store.count() == 1003


async def test_a_namespace_whose_drop_was_cut_short_by_a_kill_can_be_used_again(
    tmp_path: Path,
) -> None:
    async with provider_of(tmp_path) as opened:
        await fill(opened, 10)
    async with provider_of(tmp_path) as opened:
        await opened.files.keystore.drop("notes", opened.clock())  # the kill comes after this
    for _ in range(2):
        async with provider_of(tmp_path) as opened:
            await fill(opened, 3)
            assert len(await keys(opened)) == 3
            await opened._stores.pop("notes").close()  # and no watermark is noted
