"""The doctor finds every kind of problem in a directory, and changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from strongroom.errors import StoreDamaged
from strongroom.settings import StorageSettings
from strongroom.storage import system_clock
from strongroom.storage.sqlite.doctor import Finding, examine_at_rest, examine_running
from strongroom.storage.sqlite.files import StoreFiles
from strongroom.threads import Threads
from support.files import fingerprint
from support.notes import KEY, META, NOTES, Note, provider_of


class Other(BaseModel):
    number: int


async def fill(directory: Path, count: int, **settings: Any) -> None:
    async with provider_of(directory, **settings) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set_many({f"{n:04}": Note(text=f"note {n} " * 50) for n in range(count)})


def examine(directory: Path) -> list[Finding]:
    settings = StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)
    told: list[tuple[str, int, int]] = []
    before = fingerprint(directory)
    files = StoreFiles(settings, system_clock, Threads(1), encrypts=True)
    findings = examine_at_rest(files, lambda *now: told.append(now))
    assert fingerprint(directory) == before
    assert told[-1][1] == told[-1][2] > 0
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    return findings


def problems(findings: list[Finding]) -> list[Finding]:
    found = [finding for finding in findings if finding.level == "problem"]
    assert all(finding.remedy for finding in found)
    return found


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    await fill(tmp_path / "data", 300)
    return tmp_path / "data"


async def test_a_sound_directory_has_no_problem(data: Path) -> None:
    findings = examine(data)
    assert not problems(findings)
    assert any("300 records" in finding.what for finding in findings)


async def test_a_log_that_a_kill_left_is_read_and_left(data: Path, tmp_path: Path) -> None:
    async with provider_of(data) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set("new", Note(text="new"))
        shutil.copytree(data, tmp_path / "killed")
    assert (tmp_path / "killed" / f"{NOTES}-wal").stat().st_size > 0
    findings = examine(tmp_path / "killed")
    assert not problems(findings)
    assert any("301 records" in finding.what for finding in findings)


@pytest.mark.parametrize("name", [NOTES, META])
async def test_a_log_that_is_missing_after_a_kill_is_found(
    data: Path, tmp_path: Path, name: str
) -> None:
    async with provider_of(data) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set("new", Note(text="new"))
        shutil.copytree(data, tmp_path / "killed")
    (tmp_path / "killed" / f"{name}-wal").unlink()
    [found] = problems(examine(tmp_path / "killed"))
    assert "what was acknowledged last is missing" in found.what
    assert f"{tmp_path / 'killed' / name}-wal" in found.what


@pytest.mark.parametrize("page", range(1, 12, 2))
async def test_a_changed_byte_in_any_page_is_found(data: Path, page: int) -> None:
    content = bytearray((data / NOTES).read_bytes())
    content[page * 4096 + 2000] ^= 1
    (data / NOTES).write_bytes(content)
    [found] = problems(examine(data))
    assert found.namespace == "notes"
    assert str(data / NOTES) in found.what


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1
    file.write_bytes(content)


def contradict_an_index(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"0200", b"0999", 1))


@pytest.mark.parametrize(
    ("settings", "file", "spoil"),
    [
        ({}, NOTES, change_a_byte),
        ({"profile": "sqlite", "key": None}, "notes.db", contradict_an_index),
    ],
)
async def test_a_running_node_uses_no_store_any_longer_that_it_finds_damaged(
    tmp_path: Path, settings: dict[str, Any], file: str, spoil: Callable[[Path], None]
) -> None:
    await fill(tmp_path / "data", 300, **settings)
    spoil(tmp_path / "data" / file)
    async with provider_of(tmp_path / "data", **settings) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        assert await notes.get("0000")
        found = problems(await examine_running(provider, lambda *_: None))
        for use in (notes.get("0000"), notes.set("0000", Note(text="x")), notes.count()):
            with pytest.raises(StoreDamaged, match="does not use it any longer"):
                await use
        assert {finding.namespace for finding in found} == {"notes"}


async def lose(directory: Path) -> None:
    (directory / NOTES).unlink()


async def put_back_an_older_copy(directory: Path) -> None:
    old = (directory / NOTES).read_bytes()
    await fill(directory, 310)
    (directory / NOTES).write_bytes(old)


async def add_a_stranger(directory: Path) -> None:
    shutil.copy(directory / NOTES, directory / "more_encrypted_value.db")
    (directory / "more_encrypted_value.db").chmod(0o600)


async def open_to_others(directory: Path) -> None:
    directory.chmod(0o755)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (lose, "not there"),
        (put_back_an_older_copy, "older copy"),
        (add_a_stranger, "not a file of this node"),
        (open_to_others, "mode 755"),
    ],
)
async def test_trouble_is_found_with_its_remedy(
    data: Path, trouble: Callable[[Path], object], says: str
) -> None:
    await trouble(data)  # type: ignore[misc]
    [found] = problems(examine(data))
    assert says in found.what


async def test_a_rotation_that_was_cut_short_is_a_note(data: Path) -> None:
    async with provider_of(data) as provider:

        def stop(*_: object) -> None:
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await provider.rotate(["notes"], stop)
    findings = examine(data)
    assert not problems(findings)
    assert any(finding.remedy == "strongroom key rotate --data" for finding in findings)


async def test_a_running_node_checks_records_against_their_model(data: Path) -> None:
    async with provider_of(data) as provider:
        assert not problems(await examine_running(provider, lambda *_: None))
        await provider.get_kv_store(Other, "notes")
        found = problems(await examine_running(provider, lambda *_: None))
        assert len(found) == 5
        assert all("number" in finding.what for finding in found)
        assert not any("note 1" in finding.what for finding in found)


async def test_a_record_that_cannot_be_upgraded_does_not_end_the_examination(data: Path) -> None:
    tried: list[str] = []

    def upgrade(old: dict[str, Any]) -> dict[str, Any]:
        tried.append(old["text"])
        if len(tried) % 100 == 1:
            raise SystemError("a defect")
        return old

    async with provider_of(data) as provider:
        await provider.get_kv_store(Note, "notes", upgrade=[upgrade])
        await provider.get_kv_store(Other, "others")
        findings = await examine_running(provider, lambda *_: None)
    assert len(tried) == 300
    assert len(problems(findings)) == 3
    assert all("could not be upgraded" in finding.what for finding in problems(findings))
    assert any(finding.namespace == "others" for finding in findings)
