"""A directory stays its owner's, whoever works on it; another user's is refused with a sentence.

Each test needs two users, so root has to run them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from strongroom.keys.master import MasterKey
from support.files import fingerprint
from support.notes import KEY, KEYSTORE, NOTES, fill, provider_of

OWNER, OTHER = 65534, 65533
PROGRAM = """
import asyncio, os, sys, tempfile
from pathlib import Path
from strongroom.cli import terminal
from strongroom.cli.main import main
from strongroom.errors import StrongroomError
from strongroom.storage.sqlite.provider import SqliteProvider
from support.notes import contents, fill

user, directory, key, *arguments = sys.argv[1:]
with tempfile.TemporaryDirectory() as elsewhere:
    asyncio.run(fill(Path(elsewhere), "loads every module: another user may not read Python's"))
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
if arguments:
    sys.argv = ["strongroom", *arguments, "--directory", directory]
    main()
try:
    asyncio.run(fill(Path(directory), "four", key=key))
    print(*asyncio.run(contents(Path(directory), key=key)))
except StrongroomError as error:
    print(type(error).__name__, error)
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


def run_as(user: int, directory: Path, *arguments: str, key: str = KEY) -> str:
    """Run a command as a user, or else write a note; returns what is said, or the notes' keys."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(user), str(directory), key, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "FAME_STORAGE_MASTER_KEY": KEY,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return (done.stdout + done.stderr).strip()


def chown(directory: Path) -> None:
    for path in (directory, *directory.iterdir()):
        os.chown(path, OWNER, OWNER)


@pytest.fixture
async def data() -> AsyncIterator[Path]:
    """A directory of OWNER, in a place that every user can reach."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        directory = Path(home) / "data"
        await fill(directory, "one")
        chown(directory)
        yield directory


async def test_what_root_rewrites_stays_the_owners(data: Path) -> None:
    (data / KEYSTORE).chmod(0o640)
    async with provider_of(data) as provider:
        await provider.rotate()
        await provider.change_master(MasterKey("cd" * 32))
        await provider.open("more")
    for path in (data, *data.iterdir()):
        assert (path.stat().st_uid, path.stat().st_gid) == (OWNER, OWNER), path
    assert (data / KEYSTORE).stat().st_mode & 0o777 == 0o640
    assert run_as(OWNER, data, key="cd" * 32) == "four one"


async def test_a_log_that_root_left_can_be_used_by_the_owner(data: Path) -> None:
    async with provider_of(data) as provider:
        await provider.open("notes")
        for path in data.iterdir():
            assert path.stat().st_uid == OWNER, path


async def test_a_directory_of_another_user_is_refused(data: Path) -> None:
    data.chmod(0o755)
    for path in data.iterdir():
        path.chmod(0o644)
    before = fingerprint(data)
    said = run_as(OTHER, data)
    assert said.startswith(f"DirectoryError {data} belongs to user {OWNER}"), said
    assert "Try: run it as user" in said
    assert fingerprint(data) == before


async def test_a_directory_that_one_may_not_enter_is_refused(data: Path) -> None:
    for said in (run_as(OTHER, data), run_as(OTHER, data, "store", "ls")):
        assert "this user may not read it" in said, said
        assert "Try:" in said
    assert "Permission denied" in run_as(OTHER, data / "below")
    assert "No node has kept data" not in run_as(OTHER, data, "doctor")


async def test_a_file_of_another_user_is_refused_until_it_is_given_back(data: Path) -> None:
    os.chown(data / NOTES, 0, 0)
    said = run_as(OWNER, data)
    assert "belongs to user 0, and its directory to user 65534" in said
    remedy = said.partition("Try: ")[2].partition(",")[0]
    assert os.system(remedy) == 0  # the remedy, literally
    assert run_as(OWNER, data) == "four one"


async def test_doctor_tells_root_what_the_owner_cannot_use(data: Path) -> None:
    os.chown(data / NOTES, 0, 0)
    (data / "README").symlink_to("nowhere")
    said = run_as(0, data, "doctor")
    assert f"{data / NOTES} belongs to user 0, and its directory to user {OWNER}." in said
    assert f"{data / 'README'} belongs to user 0" in said
    assert "Found 2 problems" in said


async def test_a_file_that_its_owner_may_not_read_is_named(data: Path) -> None:
    for name in (KEYSTORE, NOTES):
        (data / name).chmod(0)
        said = run_as(OWNER, data)
        assert said.startswith("StoreUnavailable"), said
        assert name in said
        assert "Try:" in said
        (data / name).chmod(0o600)
    assert run_as(OWNER, data) == "four one"
