"""Any mix of concurrent operations works, also when cancelled, and closing leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel

from strongroom.disk import database
from strongroom.errors import RevisionConflict, StoreClosed, StoreForked
from strongroom.settings import StorageSettings
from strongroom.storage import KeyValueStore, StorageProvider, Write
from strongroom.storage.provider import open_provider
from strongroom.storage.sqlite import provider as sqlite
from strongroom.storage.sqlite.files import StoreFiles
from strongroom.storage.sqlite.writer import Writer

KEY = "ab" * 32


class Note(BaseModel):
    number: int
    text: str = ""


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def provider_of(directory: Path) -> StorageProvider:
    settings = StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)
    return await open_provider(settings)


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[StorageProvider]:
    provider = await provider_of(tmp_path / "data")
    yield provider
    await provider.close()


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle files are closed, and written ones marked, at each of very quick ticks."""
    monkeypatch.setattr(sqlite, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(sqlite, "MARK_TICKS", 2)
    monkeypatch.setattr(sqlite, "IDLE_TICKS", 1)


async def act(notes: KeyValueStore[Note], chance: Random) -> None:
    """One of all operations, on one of few keys."""
    key = f"k{chance.randrange(20)}"
    note = Note(number=chance.randrange(1000), text="x" * chance.choice([10, 500, 100_000]))
    match chance.randrange(10):
        case 0:
            await notes.get(key)
        case 1:
            await notes.delete(key)
        case 2:
            await notes.modify(key, lambda old: Note(number=old.number + 1), default=note)
        case 3:
            async for _ in notes.scan(chance.choice(["", "k1"])):
                pass
        case 4:
            await notes.count()
        case 5:
            with contextlib.suppress(RevisionConflict):
                async with notes.transaction() as transaction:
                    await transaction.get(key)
                    await transaction.set(key, note)
        case 6:
            await notes.set(key, note, ttl=0.02)
        case 7:
            await asyncio.sleep(chance.choice([0, 0.03]))
        case _:
            await notes.set(key, note)


async def test_any_mix_of_operations_works_on_files_that_open_and_close(
    provider: StorageProvider, restless: None
) -> None:
    stores = [await provider.get_kv_store(Note, f"n{n}") for n in range(4)]

    async def busy(number: int) -> None:
        chance = Random(number)
        for _ in range(25):
            await act(chance.choice(stores), chance)

    async def watch(notes: KeyValueStore[Note]) -> None:
        async with aclosing(notes.watch(after=0)) as changes:
            async for _ in changes:
                pass

    async def drop_and_recreate() -> None:
        for number in range(6):
            notes = await provider.get_kv_store(Note, "passing")
            await notes.set("a", Note(number=number))
            await provider.drop("passing")

    watchers = [asyncio.create_task(watch(notes)) for notes in stores]
    await asyncio.gather(*(busy(number) for number in range(24)), drop_and_recreate())
    assert not [task.exception() for task in watchers if task.done()]
    for task in watchers:
        task.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)


async def test_a_store_that_is_dropped_while_others_use_it_is_closed_for_them(
    provider: StorageProvider,
) -> None:
    async def use(number: int) -> None:
        for _ in range(20):
            notes = await provider.get_kv_store(Note, "passing")
            with contextlib.suppress(StoreClosed):
                for _ in range(5):
                    await act(notes, Random(number))

    async def drop() -> None:
        for _ in range(8):
            await asyncio.sleep(0.01)
            await provider.drop("passing")

    await asyncio.gather(*(use(number) for number in range(8)), drop())


async def test_a_cancelled_write_is_stored_completely_or_not_at_all(
    provider: StorageProvider, restless: None
) -> None:
    notes = await provider.get_kv_store(Note, "notes")
    chance = Random(11)
    for number in range(1, 60):
        pair = {"a": Note(number=number), "b": Note(number=number, text="x" * 70_000)}
        writing = asyncio.create_task(notes.set_many(pair))
        await asyncio.sleep(chance.random() * 0.004)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        found = await notes.list()
        numbers = {note.number for note in found.values()}
        assert len(found) in (0, 2)
        assert len(numbers) <= 1, "half of a write"
        await notes.set_many({"a": Note(number=0), "b": Note(number=0)})
        assert await notes.get("a") == Note(number=0)


async def test_a_read_cancelled_while_its_store_opens_keeps_others_out_until_it_has_opened(
    provider: StorageProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the header of an open file would drop the locks of SQLite."""
    store: Any = await provider.open("notes")
    await store.apply([Write("a", b"1")])
    await store.close()
    store = await provider.open("notes")
    store.connections.was_used = False
    await store.connections.close_if_idle()
    steps: list[str] = []
    began = threading.Event()
    unlock, open_existing = StoreFiles.unlock, database.open_existing

    def unlock_slowly(files: StoreFiles, namespace: str) -> object:
        steps.append("header")
        began.set()
        time.sleep(0.05)
        return unlock(files, namespace)

    def open_slowly(*args: Any, **kwargs: Any) -> object:
        time.sleep(0.05)
        connection = open_existing(*args, **kwargs)
        steps.append("opened")
        return connection

    monkeypatch.setattr(StoreFiles, "unlock", unlock_slowly)
    monkeypatch.setattr(database, "open_existing", open_slowly)
    first = asyncio.create_task(store.read(["a"]))
    await asyncio.to_thread(began.wait)
    first.cancel()
    second = asyncio.create_task(store.read(["a"]))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    [record] = await second
    assert record.value == b"1"
    assert steps == ["header", "opened", "opened"]


async def test_a_file_whose_closing_was_cancelled_is_closed_before_it_opens_again(
    provider: StorageProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = await provider.open("notes")
    await store.apply([Write("a", b"1")])
    steps: list[str] = []
    began = threading.Event()
    unlock, stop = StoreFiles.unlock, Writer._stop

    def stop_slowly(writer: Writer, stopped: asyncio.Future[None]) -> None:
        began.set()
        time.sleep(0.05)
        try:
            stop(writer, stopped)
        finally:
            steps.append("closed")

    def unlock_and_note(files: StoreFiles, namespace: str) -> object:
        steps.append("header")
        return unlock(files, namespace)

    monkeypatch.setattr(Writer, "_stop", stop_slowly)
    monkeypatch.setattr(StoreFiles, "unlock", unlock_and_note)
    store.connections.was_used = False
    closing = asyncio.create_task(store.connections.close_if_idle())
    await asyncio.to_thread(began.wait)
    closing.cancel()
    reading = asyncio.create_task(store.read(["a"]))
    with pytest.raises(asyncio.CancelledError):
        await closing
    [record] = await reading
    assert record.value == b"1"
    assert steps == ["closed", "header"]


async def test_callers_who_write_again_and_again_share_each_commit(tmp_path: Path) -> None:
    """The clock is read once for each commit, and never gives the same time twice."""
    times = itertools.count(1)
    settings = StorageSettings(profile="sqlite", directory=tmp_path)
    provider = await open_provider(settings, lambda: next(times))
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("first", Note(number=0))

    async def write_three(caller: int) -> None:
        for number in range(3):
            await notes.set(f"{number}-{caller}", Note(number=number))

    await asyncio.gather(*(write_three(caller) for caller in range(200)))
    stored = [entry.updated_us async for entry in notes.scan() if entry.key != "first"]
    assert len(stored) == 600
    assert len(set(stored)) == 3
    await provider.close()


async def test_writes_of_every_kind_in_one_commit_keep_their_order(
    provider: StorageProvider,
) -> None:
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("a", Note(number=0))
    outcomes: list[object] = list(
        await asyncio.gather(
            notes.set("a", Note(number=1)),
            notes.set("b", Note(number=2)),
            notes.delete("a"),
            notes.set("a", Note(number=3), if_revision=0),
            notes.set("b", Note(number=4), if_revision=99),
            notes.set("a", Note(number=5)),
            return_exceptions=True,
        )
    )
    conflict = outcomes.pop(4)
    assert isinstance(conflict, RevisionConflict)
    assert outcomes == [2, 3, True, 5, 6]
    assert await notes.list() == {"a": Note(number=5), "b": Note(number=2)}


async def test_fifty_openings_leave_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    async def cycle() -> None:
        provider = await provider_of(tmp_path / "data")
        notes = await provider.get_kv_store(Note, "notes")
        await notes.set("a", Note(number=1))
        await notes.list()
        watching = asyncio.ensure_future(anext(aiter(notes.watch())))
        await asyncio.sleep(0)
        await provider.close()
        with contextlib.suppress(StoreClosed):
            await watching

    await cycle()
    before = threading.active_count(), descriptors()
    for _ in range(50):
        await cycle()
    assert (threading.active_count(), descriptors()) == before


async def test_a_child_after_a_fork_is_refused_and_its_parent_continues(
    provider: StorageProvider,
) -> None:
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("a", Note(number=1))
    child = os.fork()
    if not child:
        os._exit(refused(notes))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    await notes.set("b", Note(number=2))
    assert len(await notes.list()) == 2


def refused(notes: KeyValueStore[Note]) -> int:
    """In the child: 0 when reading and writing are refused. There is no event loop to run here."""
    for call in (notes.get("a"), notes.set("a", Note(number=9)), notes.list()):
        try:
            call.send(None)
        except StoreForked:
            continue
        except BaseException:
            return 2
        return 1
    return 0


@pytest.mark.parametrize(
    "number", [100, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
async def test_thousands_of_namespaces_hold_few_descriptors_once_idle(
    provider: StorageProvider, restless: None, number: int
) -> None:
    before = descriptors()
    for n in range(number):
        await (await provider.get_kv_store(Note, f"n{n}")).set("a", Note(number=n))
    async with asyncio.timeout(20):
        while descriptors() > before + 8:
            await asyncio.sleep(0.05)
    for n in range(0, number, 17):
        assert await (await provider.get_kv_store(Note, f"n{n}")).get("a") == Note(number=n)


FORGETFUL = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_concurrency import Note, provider_of

async def main():
    provider = await provider_of(Path({directory!r}))
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("key", Note(number=1))
    raise SystemExit(7)

asyncio.run(main())
"""


async def test_a_program_that_forgets_to_close_ends_and_loses_nothing(tmp_path: Path) -> None:
    program = FORGETFUL.format(tests=str(Path(__file__).parent), directory=str(tmp_path / "data"))
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], timeout=30, check=False
    )
    assert done.returncode == 7
    provider = await provider_of(tmp_path / "data")
    notes = await provider.get_kv_store(Note, "notes")
    assert await notes.get("key") == Note(number=1)
    await provider.close()
