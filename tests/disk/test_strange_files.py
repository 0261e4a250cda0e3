"""What a node did not put into its directory is refused, without being opened or changed."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.errors import DirectoryError, StoreUnavailable, StrongroomError
from support.files import fingerprint
from support.notes import KEYSTORE, META, NOTES, Note, contents, fill, provider_of

BESIDE = ("-wal", "-shm", "-journal")


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    await fill(directory, "one", "two")
    return directory


async def refusal(directory: Path) -> StrongroomError:
    """The error with which a start ends."""
    with pytest.raises(DirectoryError) as caught:
        async with provider_of(directory):
            pass
    assert caught.value.remedy
    return caught.value


def a_directory(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "elsewhere")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def a_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


KINDS = [a_directory, a_fifo, a_link, a_link_to_nothing, a_socket]


@pytest.mark.parametrize("name", [KEYSTORE, META, NOTES, f".{NOTES}.12345678.new"])
@pytest.mark.parametrize("suffix", ["", *BESIDE])
@pytest.mark.parametrize("make", KINDS)
async def test_what_is_no_file_is_refused_under_each_of_our_names(
    data: Path, tmp_path: Path, make: Callable[[Path], None], name: str, suffix: str
) -> None:
    (tmp_path / "elsewhere").write_bytes((data / name).read_bytes() if name == NOTES else b"x")
    before = fingerprint(tmp_path / "elsewhere", data)
    path = data / f"{name}{suffix}"
    kept = path.rename(tmp_path / "kept") if path.exists() else None
    make(path)
    assert str(path) in str(await refusal(data))
    path.rmdir() if make is a_directory else path.unlink()
    if kept:
        kept.rename(path)
    assert fingerprint(tmp_path / "elsewhere", data) == before
    assert list(await contents(data)) == ["one", "two"]


@pytest.mark.parametrize("name", [META, NOTES])
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_a_hard_link_beside_a_store_is_refused_and_what_it_links_to_is_kept(
    data: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    document = tmp_path / "document"
    document.write_bytes(b"important " * 1000)
    (data / f"{name}{suffix}").hardlink_to(document)
    error = await refusal(data)
    assert document.read_bytes() == b"important " * 1000
    assert error.remedy is not None
    assert os.system(error.remedy) == 0  # the remedy, literally
    (data / f"{name}{suffix}").write_bytes(b"")  # what was in there was no log
    assert list(await contents(data)) == ["one", "two"]
    assert document.read_bytes() == b"important " * 1000


async def test_a_backup_of_hard_links_is_no_reason_to_refuse(data: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    for path in data.iterdir():
        (tmp_path / "backup" / path.name).hardlink_to(path)
    assert list(await contents(data)) == ["one", "two"]
    await fill(data, "three")
    async with provider_of(data) as provider:
        await provider.rotate()
    assert list(await contents(data)) == ["one", "three", "two"]


async def test_a_log_that_a_backup_links_to_is_used_after_the_remedy(
    data: Path, tmp_path: Path
) -> None:
    crashed, backup = tmp_path / "crashed", tmp_path / "backup"
    async with provider_of(data) as provider:
        await (await provider.get_kv_store(Note, "notes")).set("three", Note(text="three"))
        shutil.copytree(data, crashed)  # as a kill leaves it
    shutil.copytree(crashed, backup, copy_function=os.link)
    before = fingerprint(backup)
    linked = [
        path for path in crashed.iterdir() if path.name.endswith(("-wal", "-shm", "__commits"))
    ]
    assert linked
    for _ in linked:
        error = await refusal(crashed)
        assert error.remedy is not None
        assert os.system(error.remedy) == 0  # the remedy, literally
    assert fingerprint(backup) == before
    assert list(await contents(crashed)) == ["one", "three", "two"]


@pytest.mark.parametrize("name", [KEYSTORE, META, NOTES])
async def test_a_rollback_journal_is_never_played_back(data: Path, name: str) -> None:
    journal = data / f"{name}-journal"
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(4096))
    error = await refusal(data)
    assert "rollback journal" in str(error)
    journal.unlink()
    assert list(await contents(data)) == ["one", "two"]


@pytest.mark.parametrize("name", [NOTES, f"{NOTES}-wal", f"{META}-wal", KEYSTORE])
async def test_a_file_that_claims_a_terabyte_is_refused_at_once(data: Path, name: str) -> None:
    size = (data / name).stat().st_size if (data / name).exists() else 0
    with (data / name).open("ab") as file:
        file.truncate(2**40)
    assert "claims 1,099,511,627,776 bytes" in str(await refusal(data))
    os.truncate(data / name, size)
    assert list(await contents(data)) == ["one", "two"]


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777, 0o2775])
async def test_a_directory_that_others_can_write_is_refused(data: Path, mode: int) -> None:
    data.chmod(mode)
    error = await refusal(data)
    assert error.remedy is not None
    assert os.system(error.remedy.partition(",")[0]) == 0  # the remedy, literally
    assert list(await contents(data)) == ["one", "two"]


@pytest.mark.parametrize(
    "place", ["file", "file/below", "n" * 300, "deep/" * 1000, "nul\0", "link", "loop"]
)
async def test_a_place_that_cannot_be_a_directory_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    await refusal(tmp_path / place)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "loop"]


async def test_a_directory_may_be_a_link_to_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert list(await contents(tmp_path / "link")) == ["one", "two"]


async def test_what_is_put_beside_a_store_that_is_closed_for_a_while_is_refused(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"important " * 1000)
    async with provider_of(data) as provider:
        store = await provider.open("notes")
        store.connections.was_used = False
        await store.connections.close_if_idle()
        (data / f"{NOTES}-wal").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DirectoryError, match="symbolic link"):
            await store.read(["one"])
        (data / f"{NOTES}-wal").unlink()
        assert (await store.read(["one"])) != [None]
    assert (tmp_path / "elsewhere").read_bytes() == b"important " * 1000


async def test_files_that_are_none_of_ours_do_not_matter(data: Path) -> None:
    os.mkfifo(data / "pipe")
    (data / "lost+found").mkdir()
    (data / "README").symlink_to("nowhere")
    assert list(await contents(data)) == ["one", "two"]


async def test_a_file_that_cannot_be_read_is_named(data: Path) -> None:
    from strongroom.disk.inspect import open_file

    shutil.copy(data / NOTES, data / "copy")
    (data / "link").symlink_to("copy")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        open_file(data / "link")
