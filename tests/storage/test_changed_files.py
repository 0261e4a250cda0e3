"""Whatever is done to the files of a node from outside, no acknowledged write is lost unnoticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from strongroom.errors import StorageError, StoreDamaged, StoreRolledBack, StoreUnavailable
from strongroom.settings import StorageSettings
from strongroom.storage import KeyValueStore, StorageProvider
from strongroom.storage.provider import open_provider
from strongroom.storage.sqlite import writer

KEY = "ab" * 32
FRAME = 24 + 4096
PROFILES = {"sqlite": ".db", "encrypted-sqlite": "_encrypted_value.db"}


class Note(BaseModel):
    text: str


class Node:
    """A directory, and the provider that uses it."""

    def __init__(self, directory: Path, profile: str) -> None:
        self.directory = directory
        self.profile = profile
        self.written: dict[str, Note] = {}

    def path(self, suffix: str = "", namespace: str = "notes") -> Path:
        return self.directory / f"{namespace}{PROFILES[self.profile]}{suffix}"

    async def open(self) -> StorageProvider:
        key = KEY if self.profile == "encrypted-sqlite" else None
        return await open_provider(
            StorageSettings(profile=self.profile, directory=self.directory, master_key=key)
        )

    async def write(self, notes: KeyValueStore[Note], first: int, last: int) -> None:
        for number in range(first, last):
            note = Note(text=f"{number}" * 100)
            await notes.set(f"{number}", note)
            self.written[f"{number}"] = note

    async def contents(self) -> dict[str, Note]:
        provider = await self.open()
        try:
            return dict(await (await provider.get_kv_store(Note, "notes")).list())
        finally:
            await provider.close()

    async def refusal(self) -> type[StorageError] | None:
        """The error at the next start; None if everything that was acknowledged is there."""
        try:
            found = await self.contents()
        except StorageError as error:
            assert error.remedy
            return type(error)
        assert found == self.written
        return None


@pytest.fixture(params=PROFILES)
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Node:
    return Node(tmp_path / "data", request.param)


# --- while the node runs --------------------------------------------------------------------------


def cut(path: Path, older: bytes) -> None:
    os.truncate(path, 0)


def cut_a_little(path: Path, older: bytes) -> None:
    os.truncate(path, path.stat().st_size - FRAME)


def remove(path: Path, older: bytes) -> None:
    path.unlink()


def put_back(path: Path, older: bytes) -> None:
    path.write_bytes(older)


def put_back_as_another_file(path: Path, older: bytes) -> None:
    path.with_name("copy").write_bytes(older)
    path.with_name("copy").replace(path)


def replace_by_a_copy(path: Path, older: bytes) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


ACTIONS = [
    *[(suffix, action) for suffix in ("", "-wal") for action in (cut, cut_a_little)],
    *[
        (suffix, action)
        for suffix in ("", "-wal", "-shm")
        for action in (remove, put_back, put_back_as_another_file, replace_by_a_copy)
    ],
]


@pytest.mark.parametrize(("suffix", "action"), ACTIONS)
async def test_a_file_changed_under_a_running_node_stops_its_writes(
    node: Node, suffix: str, action: Callable[[Path, bytes], None]
) -> None:
    """What was acknowledged before is there after a restart, or the start refuses."""
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 20)
    older = node.path(suffix).read_bytes()
    await node.write(notes, 20, 40)
    action(node.path(suffix), older)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"removed, replaced or changed.*Try: put it"):
            await notes.set("later", Note(text="x"))
    await provider.close()
    await node.refusal()


async def test_a_log_put_back_with_its_size_is_noticed(node: Node) -> None:
    """After a checkpoint the log begins anew and keeps its size."""
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 40)
    older = node.path("-wal").read_bytes()
    connections = (await provider.open("notes")).connections  # type: ignore[attr-defined]
    store = await connections.open()
    await connections.run_on_writer(lambda _: store._checkpoint())
    await node.write(notes, 40, 45)
    assert node.path("-wal").stat().st_size == len(older)
    put_back(node.path("-wal"), older)
    with pytest.raises(StoreUnavailable, match="changed"):
        await notes.set("later", Note(text="x"))
    await provider.close()
    assert await node.refusal() is StoreDamaged


async def test_a_hard_link_to_a_store_is_no_change(node: Node, tmp_path: Path) -> None:
    """`cp -al` makes backups of links."""
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 5)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"link{suffix}").hardlink_to(node.path(suffix))
    await node.write(notes, 5, 10)
    await provider.close()
    assert await node.refusal() is None


async def test_checkpoints_of_the_node_itself_are_no_change(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 10)
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 60)
    await provider.close()
    assert await node.refusal() is None


# --- after a kill ---------------------------------------------------------------------------------


FILLING = {f"filling-{number:03}": Note(text="x" * 300) for number in range(200)}
CHANGED = {f"filling-{number:03}": Note(text="y" * 300) for number in range(100)}


def kill_a_writer(node: Node, steps: str = "") -> None:
    """Let a process acknowledge forty writes, and kill it."""
    arguments = [str(node.directory), node.profile, steps]
    ended = subprocess.run([sys.executable, __file__, *arguments], check=False)
    assert ended.returncode in (-signal.SIGKILL, -signal.SIGBUS)
    node.written = {f"{number}": Note(text=f"{number}" * 100) for number in range(40)}
    if steps == "checkpoint":
        node.written |= FILLING | CHANGED


async def work_and_be_killed(node: Node, step: str) -> None:
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 20)
    if step == "checkpoint":
        await notes.set_many(FILLING)
        await provider.close()
        shutil.copytree(node.directory, node.directory.parent / "backup")
        provider = await node.open()
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set_many(CHANGED)
        await node.write(notes, 20, 30)
        await provider.close()
        provider = await node.open()
        notes = await provider.get_kv_store(Note, "notes")
        await node.write(notes, 30, 40)
    else:
        shutil.copy(node.path("-wal"), node.directory.parent / "older-wal")
        await node.write(notes, 20, 40)
    if step == "shm":
        os.truncate(node.path("-shm"), 0)
        await notes.count()  # the system may kill a process that uses memory without a file
    os.kill(os.getpid(), signal.SIGKILL)


async def test_nothing_is_refused_after_a_kill(node: Node) -> None:
    kill_a_writer(node)
    assert await node.refusal() is None
    assert await node.refusal() is None


async def test_shared_memory_cut_under_a_node_loses_nothing(node: Node) -> None:
    kill_a_writer(node, "shm")
    assert await node.refusal() is None


async def test_an_older_store_beside_a_newer_log_is_recognised(node: Node) -> None:
    kill_a_writer(node, "checkpoint")
    shutil.copy(node.directory.parent / "backup" / node.path().name, node.path())
    assert await node.refusal() is StoreRolledBack


async def test_an_older_log_beside_its_store_is_recognised(node: Node) -> None:
    kill_a_writer(node)
    shutil.copy(node.directory.parent / "older-wal", node.path("-wal"))
    assert await node.refusal() is StoreDamaged


@pytest.mark.parametrize("namespace", ["notes", "__node_meta"])
async def test_a_log_that_is_missing_or_empty_after_a_kill_is_damage(
    node: Node, namespace: str
) -> None:
    kill_a_writer(node)
    for action in (cut, remove):
        action(node.path("-wal", namespace), b"")
        assert await node.refusal() is StoreDamaged


async def test_all_logs_missing_after_a_kill_is_damage(node: Node) -> None:
    kill_a_writer(node)
    for namespace in ("notes", "__node_meta"):
        node.path("-wal", namespace).unlink()
    assert await node.refusal() is StoreDamaged


async def test_a_log_cut_within_a_transaction_is_damage_whatever_its_checksums_say(
    node: Node,
) -> None:
    kill_a_writer(node)
    log = node.path("-wal").read_bytes()
    frames = (len(log) - 32) // FRAME
    node.path("-wal").write_bytes(resealed(log, frames - 1))
    assert await node.refusal() is StoreDamaged


async def test_a_directory_put_back_whole_opens_once_the_note_of_commits_is_deleted(
    node: Node,
) -> None:
    """As the error advises, where a file that the backup lacks was left."""
    kill_a_writer(node, "checkpoint")
    noted = (node.directory / "__commits").read_bytes()
    shutil.rmtree(node.directory)
    shutil.copytree(node.directory.parent / "backup", node.directory)
    (node.directory / "__commits").write_bytes(noted)
    with pytest.raises(StorageError, match="delete __commits"):
        await node.contents()
    (node.directory / "__commits").unlink()
    assert len(await node.contents()) == 20 + len(FILLING)


async def test_an_older_node_meta_is_recognised_by_the_keystore(node: Node) -> None:
    """Then no sound store is taken for an old one."""
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 5)
    await provider.close()
    older = node.path(namespace="__node_meta").read_bytes()
    assert await node.refusal() is None
    newer = node.path(namespace="__node_meta").read_bytes()
    node.path(namespace="__node_meta").write_bytes(older)
    with pytest.raises(StoreRolledBack, match="__node_meta"):
        await node.contents()
    node.path(namespace="__node_meta").write_bytes(newer)
    assert await node.refusal() is None


async def test_an_older_keystore_with_the_same_keys_still_opens_everything(node: Node) -> None:
    """It is what a backup of the keystore alone is for."""
    provider = await node.open()
    notes = await provider.get_kv_store(Note, "notes")
    await node.write(notes, 0, 5)
    await provider.close()
    older = node.path(namespace="__keystore").read_bytes()
    assert await node.refusal() is None
    node.path(namespace="__keystore").write_bytes(older)
    assert await node.refusal() is None


async def test_a_start_says_when_the_note_of_commits_was_lost_after_a_kill(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    kill_a_writer(node)
    (node.directory / "__commits").unlink()
    assert await node.refusal() is None
    assert "was not stopped cleanly, and __commits is missing" in caplog.text
    caplog.clear()
    assert await node.refusal() is None
    assert "__commits" not in caplog.text


async def test_older_pages_in_a_store_are_found_in_the_background(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is refused from then on, and nothing more is written into it."""
    kill_a_writer(node, "checkpoint")
    older = (node.directory.parent / "backup" / node.path().name).read_bytes()
    newer = node.path().read_bytes()
    found = 0
    for page in range(4096, len(older), 4096):
        if older[page : page + 4096] == newer[page : page + 4096]:
            continue
        copy = Node(node.directory.parent / str(page), node.profile)
        shutil.copytree(node.directory, copy.directory)
        patched = newer[:page] + older[page : page + 4096] + newer[page + 4096 :]
        copy.path().write_bytes(patched)
        try:
            provider = await copy.open()
            await asyncio.wait([provider._checking])  # type: ignore[attr-defined]
            notes = await provider.get_kv_store(Note, "notes")
        except StorageError:
            continue
        try:
            assert await notes.list() == node.written
        except StoreDamaged as error:
            found += 1
            assert error.remedy
            for use in (notes.get("1"), notes.set("1", Note(text="x")), notes.count()):
                with pytest.raises(StoreDamaged, match="does not use it any longer"):
                    await use
            assert "is not used any longer" in caplog.text
            assert copy.path().read_bytes() == patched
        finally:
            await provider.close()
    assert found


def resealed(log: bytes, frames: int) -> bytes:
    """The first frames of a log, the last of them a commit, with right checksums throughout."""
    order = ">" if log[3] & 1 else "<"
    size = max(struct.unpack_from(">I", log, 32 + n * FRAME + 4)[0] for n in range(frames))
    one, two = struct.unpack_from(">2I", log, 24)
    made = bytearray(log[:32])
    for number in range(frames):
        frame = bytearray(log[32 + number * FRAME : 32 + (number + 1) * FRAME])
        if number == frames - 1:
            struct.pack_into(">I", frame, 4, size)
        for word in range(0, 8 + 4096, 8):
            at = word if word < 8 else word + 16
            left, right = struct.unpack_from(f"{order}2I", frame, at)
            one = (one + left + two) & 0xFFFFFFFF
            two = (two + right + one) & 0xFFFFFFFF
        struct.pack_into(">2I", frame, 16, one, two)
        made += frame
    return bytes(made)


if __name__ == "__main__":
    asyncio.run(work_and_be_killed(Node(Path(sys.argv[1]), sys.argv[2]), sys.argv[3]))
