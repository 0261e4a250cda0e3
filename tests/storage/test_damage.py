"""Changed bytes lead to an error or the right answer, never to other or missing data."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from strongroom.errors import (
    KeystoreOlder,
    StorageError,
    StoreDamaged,
    StoreRolledBack,
    StoreSwapped,
)
from strongroom.settings import StorageSettings
from strongroom.storage.provider import open_provider

KEY = "00112233445566778899aabbccddeeff" * 2
NOTES = "notes_encrypted_value.db"
FRAME = 24 + 4096
WRITES = 12


class Note(BaseModel):
    text: str


def settings(directory: Path) -> StorageSettings:
    return StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)


async def write_and_die(directory: Path) -> None:
    """Make a store, close it, open it again, write a few records one by one, and be gone."""
    provider = await open_provider(settings(directory))
    notes = await provider.get_kv_store(Note, "notes")
    for number in range(200):
        await notes.set(f"old-{number}", Note(text="x" * 300))
    await provider.close()
    provider = await open_provider(settings(directory))
    notes = await provider.get_kv_store(Note, "notes")
    for number in range(WRITES):
        await notes.set(f"new-{number:02}", Note(text=f"{number}" * 100))
    os._exit(0)


async def contents(directory: Path) -> dict[str, str]:
    provider = await open_provider(settings(directory))
    try:
        notes = await provider.get_kv_store(Note, "notes")
        return {key: note.text for key, note in (await notes.list()).items()}
    finally:
        await provider.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose node was killed, with a write-ahead log."""
    directory = tmp_path_factory.mktemp("killed") / "data"
    subprocess.run([sys.executable, __file__, str(directory)], check=True)
    assert (directory / f"{NOTES}-wal").stat().st_size > WRITES * FRAME
    return directory


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "data"))


def expected() -> dict[str, str]:
    old = {f"old-{number}": "x" * 300 for number in range(200)}
    return old | {f"new-{number:02}": f"{number}" * 100 for number in range(WRITES)}


def transactions(log: bytes) -> list[range]:
    """The frames of each transaction in a write-ahead log."""
    found, first = [], 0
    for frame in range((len(log) - 32) // FRAME):
        (size_after_commit,) = struct.unpack_from(">I", log, 32 + frame * FRAME + 4)
        if size_after_commit:
            found.append(range(first, frame + 1))
            first = frame + 1
    return found


def flip(path: Path, offset: int, mask: int = 0x5A) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= mask
    path.write_bytes(content)


async def test_a_log_left_by_a_kill_gives_back_every_acknowledged_write(copy: Path) -> None:
    assert await contents(copy) == expected()


async def test_a_changed_byte_in_the_log_is_noticed(killed: Path, tmp_path: Path) -> None:
    log = (killed / f"{NOTES}-wal").read_bytes()
    ends = transactions(log)
    last = 32 + ends[-1].start * FRAME
    chosen = random.Random(5)
    offsets = [*range(0, 32, 3)]
    for frames in ends[:-1]:
        for frame in frames:
            start = 32 + frame * FRAME
            offsets += [start + chosen.randrange(24), start + 24 + chosen.randrange(4096)]
    for number, offset in enumerate(offsets):
        assert offset < last
        directory = Path(shutil.copytree(killed, tmp_path / str(number)))
        flip(directory / f"{NOTES}-wal", offset)
        before = (directory / f"{NOTES}-wal").read_bytes()
        try:
            found = await contents(directory)
        except StoreDamaged:
            assert (directory / f"{NOTES}-wal").read_bytes() == before
        else:
            assert found == expected(), f"offset {offset}: {len(found)} records"


async def test_a_torn_last_transaction_was_never_acknowledged(copy: Path) -> None:
    (copy / "__commits").unlink()  # otherwise it tells that this one was acknowledged
    log = copy / f"{NOTES}-wal"
    last = transactions(log.read_bytes())[-1]
    flip(log, 32 + last[-1] * FRAME + 2000)
    found = await contents(copy)
    assert expected().items() >= found.items()
    assert len(found) == len(expected()) - 1


async def test_a_log_that_was_cut_off_or_removed_is_an_older_copy(
    killed: Path, tmp_path: Path
) -> None:
    """Noticed as soon as the store had been marked after what was cut off."""
    directory = Path(shutil.copytree(killed, tmp_path / "data"))
    await contents(directory)  # a clean stop marks it
    old = Path(shutil.copytree(killed, tmp_path / "old"))
    shutil.copy(old / NOTES, directory / NOTES)
    with pytest.raises(StoreRolledBack):
        await contents(directory)


@pytest.mark.parametrize("name", [NOTES, "__keystore_encrypted_value.db"])
async def test_a_changed_byte_in_any_page_never_gives_other_data(
    copy: Path, tmp_path: Path, name: str
) -> None:
    await contents(copy)
    size = (copy / name).stat().st_size
    chosen = random.Random(7)
    for page in range(0, size, 4096):
        directory = Path(shutil.copytree(copy, tmp_path / str(page)))
        flip(directory / name, page + chosen.randrange(4096))
        try:
            found = await contents(directory)
        except StoreDamaged:
            pass
        else:
            assert found == expected(), f"page {page // 4096}"


async def test_pages_that_changed_places_are_damage(copy: Path) -> None:
    await contents(copy)
    path = copy / NOTES
    content = path.read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    pages[-1], pages[-2] = pages[-2], pages[-1]
    path.write_bytes(b"".join(pages))
    with pytest.raises(StoreDamaged):
        await contents(copy)


def put_back(directory: Path, name: str, content: bytes | None) -> None:
    """Give a file the content that it had; None removes it."""
    path = directory / name
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)


async def outcome(directory: Path) -> dict[str, str] | type[StorageError]:
    """What is found, or the error; each error says what to do."""
    try:
        return await contents(directory)
    except StorageError as error:
        assert "Try:" in str(error), error
        return type(error)


@pytest.mark.parametrize("name", [NOTES, "__node_meta_encrypted_value.db"])
async def test_a_file_that_is_cut_off_at_any_page_is_damage(
    killed: Path, copy: Path, tmp_path: Path, name: str
) -> None:
    await contents(copy)  # a clean stop empties the log
    size = (copy / name).stat().st_size
    for cut in range(0, size, 4096):
        directory = Path(shutil.copytree(copy, tmp_path / str(cut)))
        os.truncate(directory / name, cut)
        assert await outcome(directory) is StoreDamaged, f"{cut} of {size}"


async def test_a_log_that_is_cut_off_at_any_frame_is_damage(killed: Path, tmp_path: Path) -> None:
    log = (killed / f"{NOTES}-wal").read_bytes()
    for frame in range(len(log) // FRAME):
        directory = Path(shutil.copytree(killed, tmp_path / str(frame)))
        os.truncate(directory / f"{NOTES}-wal", 32 + frame * FRAME)
        assert await outcome(directory) is StoreDamaged, frame


async def test_after_a_power_loss_a_log_that_is_cut_off_gives_no_half_transaction(
    killed: Path, tmp_path: Path
) -> None:
    """What it had ended with was not noted durably, so it is not noticed; the rest is whole."""
    log = (killed / f"{NOTES}-wal").read_bytes()
    everything, ends = expected(), [t.stop for t in transactions(log)]
    for frame in range(len(log) // FRAME):
        directory = Path(shutil.copytree(killed, tmp_path / str(frame)))
        (directory / "__commits").write_bytes(b"")
        os.truncate(directory / f"{NOTES}-wal", 32 + frame * FRAME)
        found = await outcome(directory)
        assert isinstance(found, dict), frame
        kept = sum(end <= frame for end in ends)
        assert found.items() <= everything.items()
        assert len(found) >= len(everything) - (len(ends) - kept)


async def test_the_log_of_another_store_is_never_taken(killed: Path, copy: Path) -> None:
    for name in (f"{NOTES}-wal", "__node_meta_encrypted_value.db-wal"):
        other = {NOTES: "__node_meta_encrypted_value.db"}.get(name.removesuffix("-wal"), NOTES)
        put_back(copy, name, (killed / f"{other}-wal").read_bytes())
    assert await outcome(copy) is StoreDamaged


async def test_a_store_whose_log_was_exchanged_is_recognised(copy: Path) -> None:
    meta = "__node_meta_encrypted_value.db"
    for suffix in ("", "-wal"):
        (copy / f"{NOTES}{suffix}").rename(copy / "away")
        (copy / f"{meta}{suffix}").rename(copy / f"{NOTES}{suffix}")
        (copy / "away").rename(copy / f"{meta}{suffix}")
    assert await outcome(copy) is StoreSwapped


async def test_an_older_keystore_and_store_together_are_recognised(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    await write(directory, "first")
    older = {path.name: path.read_bytes() for path in directory.iterdir()}
    await write(directory, "second")
    newest = await contents(directory)
    keystore, meta = "__keystore_encrypted_value.db", "__node_meta_encrypted_value.db"
    put_back(directory, NOTES, older[NOTES])
    assert await outcome(directory) is StoreRolledBack
    put_back(directory, keystore, older[keystore])
    assert await outcome(directory) in (StoreRolledBack, KeystoreOlder)
    for name in (keystore, meta):  # the keystore has noted the start
        put_back(directory, name, older[name])
    assert await outcome(directory) == {"first": "first"}, "all is older, and nothing can tell"
    assert newest == {"first": "first", "second": "second"}


async def write(directory: Path, key: str) -> None:
    provider = await open_provider(settings(directory))
    await (await provider.get_kv_store(Note, "notes")).set(key, Note(text=key))
    await provider.close()


async def test_an_older_page_is_noticed_or_shows_what_it_once_held(tmp_path: Path) -> None:
    """The exception that the threat model names: a page of the same file is authentic."""
    directory = tmp_path / "data"
    history: list[dict[str, str]] = []
    provider = await open_provider(settings(directory))
    notes = await provider.get_kv_store(Note, "notes")
    for number in range(60):
        await notes.set(f"{number}", Note(text="x" * 300))
    await provider.close()
    history.append(await contents(directory))
    older = (directory / NOTES).read_bytes()
    for number in range(0, 60, 7):
        await write(directory, f"{number}")
    history.append(await contents(directory))
    newest = (directory / NOTES).read_bytes()
    noticed = 0
    for page in range(0, len(older), 4096):
        if older[page : page + 4096] == newest[page : page + 4096]:
            continue
        copy = Path(shutil.copytree(directory, tmp_path / str(page)))
        put_back(copy, NOTES, newest[:page] + older[page : page + 4096] + newest[page + 4096 :])
        found = await outcome(copy)
        if isinstance(found, dict):
            once = [(key, state.get(key)) for state in history for key in state]
            assert all(item in once for item in found.items())
        else:
            noticed += 1
    assert noticed


if __name__ == "__main__":
    asyncio.run(write_and_die(Path(sys.argv[1])))
