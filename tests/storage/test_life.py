"""A provider that is closed leaves nothing, and one used at the wrong time or place says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from strongroom.errors import (
    DirectoryInUse,
    NotStarted,
    StorageError,
    StoreClosed,
    StoreForked,
    StrongroomError,
    WrongMasterKey,
)
from strongroom.keys.master import MasterKey
from strongroom.settings import StorageSettings
from strongroom.storage.provider import NODE_META
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider, SqliteProvider
from support.files import descriptors
from support.notes import KEY, Note, contents, fill, provider_of

HOLDER = """
import asyncio, sys
from pathlib import Path
from support.notes import provider_of

async def main():
    async with provider_of(Path(sys.argv[1])):
        print("has it", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""

CALLS: dict[str, Callable[[SqliteProvider], Awaitable[object]]] = {
    "open": lambda provider: provider.open("more"),
    "open one that is open": lambda provider: provider.open("notes"),
    "get_kv_store": lambda provider: provider.get_kv_store(Note, "more"),
    "namespaces": lambda provider: provider.namespaces(),
    "drop": lambda provider: provider.drop("notes"),
    "change_master": lambda provider: provider.change_master(MasterKey("cd" * 32)),
    "rotate": lambda provider: provider.rotate(),
    "note": lambda provider: provider.note("seen"),
    "audit": lambda provider: provider.audit(),
    "verify_audit": lambda provider: provider.verify_audit(),
}


def new_provider(directory: Path) -> SqliteProvider:
    return EncryptedSqliteProvider(
        StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)
    )


async def outcome(call: Awaitable[object]) -> type[BaseException] | None:
    """The type of the error with which a call ends, soon."""
    try:
        async with asyncio.timeout(10):
            await call
    except Exception as error:
        assert not isinstance(error, StrongroomError) or "Try:" in str(error), error
        return type(error)
    return None


# --- closing ----------------------------------------------------------------------------------


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name != "MainThread"}


def just_the_caller(closing: asyncio.Task[None]) -> None:
    closing.cancel()


def every_task(_closing: asyncio.Task[None]) -> None:
    """As `asyncio.run` does at its end."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def close_cancelled(directory: Path, turns: int, cancel: Callable[..., None]) -> bool:
    """Cancel a `close` after some turns of the loop, and close again; was it done before?"""
    provider = new_provider(directory)
    await provider.start()
    for namespace in ("notes", "more"):
        notes = await provider.get_kv_store(Note, namespace)
        await notes.set("a", Note(text="x"))
        await notes.list()
    closing = asyncio.create_task(provider.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    done = closing.done()
    cancel(closing)
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await provider.close()
    return done


@pytest.mark.parametrize("cancel", [just_the_caller, every_task])
async def test_a_close_that_is_cancelled_at_any_point_and_repeated_leaves_nothing(
    tmp_path: Path, cancel: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    await fill(tmp_path)
    before, running = descriptors(), threads()
    turns = 0
    while not await close_cancelled(tmp_path, turns, cancel):
        assert descriptors() == before, turns
        assert threads() <= running, turns
        turns += 1 + turns // 4
    assert turns > 10
    assert sorted(await contents(tmp_path)) == ["a"]
    assert "missing" not in caplog.text


@pytest.mark.parametrize("store", ["notes", NODE_META])
async def test_a_close_that_is_cancelled_while_it_closes_a_file_can_be_repeated(
    tmp_path: Path, store: str
) -> None:
    before, running = descriptors(), threads()
    provider = new_provider(tmp_path)
    await provider.start()
    await (await provider.get_kv_store(Note, "notes")).set("a", Note(text="x"))
    connections = (await provider.open(store)).connections
    closing = asyncio.create_task(provider.close())
    while not connections.is_closed:
        await asyncio.sleep(0)
    every_task(closing)
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await provider.close()
    assert descriptors() == before
    assert threads() <= running
    assert sorted(await contents(tmp_path)) == ["a"]


@pytest.mark.parametrize("cancel", [just_the_caller, every_task])
async def test_a_start_that_is_cancelled_at_any_point_leaves_nothing(
    tmp_path: Path, cancel: Callable[..., None]
) -> None:
    await fill(tmp_path, "a")
    before, running = descriptors(), threads()
    turns, done = 0, False
    while not done:
        provider = new_provider(tmp_path)
        starting = asyncio.create_task(provider.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        done = starting.done()
        cancel(starting)
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await provider.close()
        assert descriptors() == before, turns
        assert threads() <= running, turns
        turns += 1 + turns // 4
    assert sorted(await contents(tmp_path)) == ["a"]


# --- the wrong time ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
async def test_each_call_on_a_closed_provider_says_that_it_was_closed(
    tmp_path: Path, name: str
) -> None:
    async with provider_of(tmp_path) as provider:
        await provider.get_kv_store(Note, "notes")
    assert await outcome(CALLS[name](provider)) is StoreClosed


@pytest.mark.parametrize("name", CALLS)
async def test_each_call_on_a_provider_that_was_not_started_says_so(
    tmp_path: Path, name: str
) -> None:
    provider = new_provider(tmp_path / "data")
    assert await outcome(CALLS[name](provider)) is NotStarted
    await provider.close()
    assert not (tmp_path / "data").exists()


async def test_a_second_start_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with provider_of(tmp_path) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        with pytest.raises(StorageError, match="was started already"):
            await provider.start()
        await notes.set("a", Note(text="x"))
    with pytest.raises(StoreClosed):
        await provider.start()
    assert list(await contents(tmp_path)) == ["a"]


async def test_a_provider_whose_start_failed_says_that_it_is_of_no_use(tmp_path: Path) -> None:
    await fill(tmp_path, "a")
    provider = EncryptedSqliteProvider(
        StorageSettings(profile="encrypted-sqlite", directory=tmp_path, master_key="cd" * 32)
    )
    with pytest.raises(WrongMasterKey):
        await provider.start()
    for call in (provider.start(), provider.namespaces()):
        assert await outcome(call) is StoreClosed
    await provider.close()
    assert list(await contents(tmp_path)) == ["a"]


# --- the wrong place --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CALLS, "close", "set", "list", "watch"])
def test_each_call_in_a_second_event_loop_is_refused(tmp_path: Path, name: str) -> None:
    with asyncio.Runner() as first, asyncio.Runner() as second:
        provider = new_provider(tmp_path)
        first.run(provider.start())
        notes = first.run(provider.get_kv_store(Note, "notes"))
        first.run(notes.set("a", Note(text="x")))
        calls = CALLS | {
            "close": lambda _: provider.close(),
            "set": lambda _: notes.set("b", Note(text="y")),
            "list": lambda _: notes.list(),
            "watch": lambda _: anext(notes.watch(after=0)),
        }
        assert second.run(outcome(calls[name](provider))) is StorageError
        assert list(first.run(notes.list())) == ["a"]
        first.run(provider.close())


@pytest.mark.parametrize("name", [*CALLS, "close"])
def test_each_call_in_a_child_after_a_fork_is_refused(tmp_path: Path, name: str) -> None:
    calls = CALLS | {"close": lambda provider: provider.close()}
    with asyncio.Runner() as runner:
        provider = new_provider(tmp_path)
        runner.run(provider.start())
        notes = runner.run(provider.get_kv_store(Note, "notes"))
        child = os.fork()
        if not child:
            refused = asyncio.run(outcome(calls[name](provider))) is StoreForked
            os._exit(0 if refused else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        runner.run(notes.set("a", Note(text="x")))
        runner.run(provider.close())
    assert list(asyncio.run(contents(tmp_path))) == ["a"]


# --- a directory that is in use ---------------------------------------------------------------


async def test_a_directory_of_this_process_is_not_called_another_processs(tmp_path: Path) -> None:
    async with provider_of(tmp_path):
        (tmp_path.parent / "link").symlink_to(tmp_path)
        for path in (tmp_path, tmp_path.parent / "link"):
            with pytest.raises(DirectoryInUse, match="in use by this process already"):
                async with provider_of(path):
                    pass


async def test_a_start_waits_for_the_process_that_is_still_closing_the_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"has it\n"
        starting = asyncio.create_task(fill(tmp_path, "a"))
        while "is in use by another process. Waiting 5 s" not in caplog.text:
            await asyncio.sleep(0.01)
        assert not starting.done()
        holder.stdin.close()
        await starting
    assert list(await contents(tmp_path)) == ["a"]
