"""A node may have more namespaces than its process may have open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.disk import database
from strongroom.errors import StoreUnavailable
from strongroom.storage.sqlite.open_files import OpenFiles, most_open

PROGRAM = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.files import descriptors
from support.notes import Note, provider_of

async def main():
    async with provider_of(Path({directory!r})) as provider:
        stores = [await provider.get_kv_store(Note, f"n{{n}}") for n in range({number})]
        for n, store in enumerate(stores):
            await store.set("a", Note(text=str(n)))
        for _ in range(2):
            found = await asyncio.gather(*(store.get("a") for store in stores))
            assert [note.text for note in found] == [str(n) for n in range({number})]
            listed = await asyncio.gather(*(store.list() for store in stores))
            assert len(listed) == {number}
            await asyncio.gather(*(store.set("b", Note(text="b")) for store in stores))
            assert descriptors() < {limit}
        await provider.rotate(["n1", "n2"])

asyncio.run(main())
"""


def run(directory: Path, *, limit: int, number: int) -> None:
    tests = str(Path(__file__).parents[1])
    program = PROGRAM.format(tests=tests, directory=str(directory), limit=limit, number=number)
    subprocess.run([sys.executable, "-c", program], check=True)


def test_more_namespaces_are_used_than_files_may_be_open(tmp_path: Path) -> None:
    run(tmp_path / "data", limit=128, number=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_thousand_namespaces_are_used_with_the_usual_limit(tmp_path: Path) -> None:
    run(tmp_path / "data", limit=1024, number=2000)


def test_a_process_with_too_many_open_files_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    database.create(path, None, lambda connection: connection.execute("CREATE TABLE note (text)"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(StoreUnavailable, match=r"too many open files.*ulimit"):
            database.open_existing(path, None, check_log=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Store:
    """A store that nobody is using at the moment."""

    def __init__(self, files: OpenFiles, *, was_used: bool) -> None:
        self.was_used = was_used
        self._files = files

    async def close_if_idle(self) -> None:
        self._files.closed(self)


async def test_a_store_that_is_used_stays_open_and_another_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 50))
    files = OpenFiles()
    used, unused = Store(files, was_used=True), Store(files, was_used=False)
    for store in (used, unused, Store(files, was_used=True)):
        files.opened(store)
    assert most_open() == 3
    async with files.room():
        assert files.is_open(used)
        assert not files.is_open(unused)
