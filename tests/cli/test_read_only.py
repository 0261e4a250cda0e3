"""A directory on a read-only disk can be examined and read, and nothing tries to change it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.files import fingerprint
from support.notes import KEY, NOTES, fill

MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
CAN_MOUNT = (
    os.geteuid() != 0 or not subprocess.run(["unshare", "-m", "true"], check=False).returncode
)
pytestmark = pytest.mark.skipif(not CAN_MOUNT, reason="this root can mount nothing")

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from support.notes import Note, provider_of

async def main():
    async with provider_of(Path(sys.argv[1])) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set("two", Note(text="two"))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def environment(**variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "FAME_STORAGE_MASTER_KEY": KEY,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **variables,
    }


def strongroom(directory: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run a command while the directory is read-only: its status, and what it says."""
    command = [sys.executable, "-m", "strongroom", *arguments, "--directory", str(directory)]
    if os.geteuid() == 0:  # whom only a read-only mount keeps from writing
        command = ["unshare", "-m", "sh", "-c", MOUNT, str(directory), *command]
    directory.chmod(0o500)
    done = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, check=False
    )
    directory.chmod(0o700)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """A directory whose node was killed, so that a write is only in a log."""
    directory = tmp_path / "data"
    await fill(directory, "one")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory)], env=environment(), check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert (directory / f"{NOTES}-wal").stat().st_size > 0
    return directory


async def test_what_is_on_a_read_only_disk_can_be_read(data: Path, tmp_path: Path) -> None:
    before, temporary = fingerprint(data), tmp_path / "temporary"
    temporary.mkdir()
    for arguments, expected in (
        (("store", "get", "notes", "two"), ['{"text":"two"}']),
        (("store", "export", "notes"), ["one", "two"]),
        (("store", "ls"), ["notes"]),
        (("audit", "verify"), ["unchanged"]),
    ):
        status, said, warned = strongroom(data, *arguments, TMPDIR=str(temporary))
        assert status == 0, warned
        assert "cannot be written: this reads a copy of it" in warned
        assert all(text in said for text in expected), said
        assert list(temporary.iterdir()) == []
    assert fingerprint(data) == before


async def test_doctor_examines_a_read_only_disk_and_says_what_it_is(data: Path) -> None:
    before = fingerprint(data)
    status, said, warned = strongroom(data, "doctor", "--json")
    findings = [json.loads(line) for line in said.splitlines()]
    assert status == 0, said + warned
    assert any("cannot be written" in finding["what"] for finding in findings)
    assert any("2 records" in finding["what"] for finding in findings)
    assert fingerprint(data) == before


@pytest.mark.parametrize(
    "command",
    [
        "store put notes three {}",
        "store delete notes one",
        "store drop notes --yes",
        "key rotate --data",
    ],
)
async def test_a_command_that_writes_says_that_it_cannot(data: Path, command: str) -> None:
    before = fingerprint(data)
    status, _, warned = strongroom(data, *command.split())
    assert status == 34, warned
    assert f"{data} may not be written" in warned
    assert fingerprint(data) == before


async def test_a_copy_that_finds_a_stranger_leaves_nothing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    os.mkfifo(data / "more_encrypted_value.db")
    status, _, warned = strongroom(data, "store", "ls", TMPDIR=str(tmp_path / "temporary"))
    assert status == 20, warned
    assert "is a FIFO" in warned
    assert list((tmp_path / "temporary").iterdir()) == []
