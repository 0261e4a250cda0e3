"""The profile `encrypted-postgres` on a real server."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import BaseModel

from strongroom import StorageSettings
from strongroom.errors import ProfileMismatch, WrongMasterKey
from strongroom.storage import StorageProvider, open_provider
from support.postgres import PostgresServer, new_space, server
from support.providers import MASTER_KEY

TASKS, EACH = 4, 15


class Count(BaseModel):
    number: int = 0
    text: str = ""


@asynccontextmanager
async def opened(
    space: str, *, profile: str = "encrypted-postgres", key: str = MASTER_KEY, url: str = ""
) -> AsyncIterator[StorageProvider]:
    settings = StorageSettings(
        profile=profile, url=url or server().url, space=space, master_key=key
    )
    provider = await open_provider(settings)
    try:
        yield provider
    finally:
        await provider.close()


async def increment(provider: StorageProvider, times: int) -> None:
    store = await provider.get_kv_store(Count, "counts")
    for _ in range(times):
        await store.modify("c", lambda old: Count(number=old.number + 1), default=Count())


async def test_what_one_process_stored_another_reads() -> None:
    space = new_space()
    async with opened(space) as provider:
        store = await provider.get_kv_store(Count, "notes")
        await store.set("a", Count(number=1))

    async with opened(space) as provider:
        assert await provider.namespaces() == ["notes"]
        store = await provider.get_kv_store(Count, "notes")
        assert await store.get("a") == Count(number=1)


async def test_another_master_key_and_another_profile_are_refused() -> None:
    space = new_space()
    async with opened(space):
        pass

    with pytest.raises(WrongMasterKey):
        async with opened(space, key="ab" * 32):
            pass
    with pytest.raises(ProfileMismatch):
        async with opened(space, profile="postgres"):
            pass


async def test_processes_that_begin_a_space_together_agree_on_its_keys() -> None:
    space = new_space()

    async def begin(number: int) -> None:
        async with opened(space) as provider:
            store = await provider.get_kv_store(Count, "notes")
            await store.set(str(number), Count(number=number))

    await asyncio.gather(*map(begin, range(3)))

    async with opened(space) as provider:
        store = await provider.get_kv_store(Count, "notes")
        assert list(await store.list()) == ["0", "1", "2"]


async def test_no_increment_of_two_processes_is_lost() -> None:
    space = new_space()
    async with opened(space) as first, opened(space) as second:
        await asyncio.gather(
            *(increment(provider, EACH) for provider in (first, second) for _ in range(TASKS))
        )
        store = await first.get_kv_store(Count, "counts")
        assert await store.get("c") == Count(number=2 * TASKS * EACH)


@pytest.mark.slow
async def test_each_increment_is_counted_once_while_the_server_is_killed(
    own_server: PostgresServer,
) -> None:
    own_server.start()
    async with opened(new_space(), url=own_server.url) as provider:
        store = await provider.get_kv_store(Count, "counts")
        working = asyncio.gather(*(increment(provider, EACH) for _ in range(TASKS)))
        while (await store.get("c") or Count()).number < EACH:
            pass
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.start)
        await working
        assert await store.get("c") == Count(number=TASKS * EACH)


@pytest.mark.slow
async def test_nothing_readable_is_in_the_servers_files(own_server: PostgresServer) -> None:
    own_server.start()
    secret = "the plainly readable text"
    async with opened(new_space(), url=own_server.url) as provider:
        store = await provider.get_kv_store(Count, "a_namespace_with_a_name")
        await store.set("a key that tells a lot", Count(text=secret))
        await store.set("a key that tells a lot", Count(text=f"{secret}, again"))
        await store.delete("a key that tells a lot")
        await store.set("another key that tells", Count(text=secret * 1000))
    own_server.stop()

    for words in (secret, "key that tells", "a_namespace_with_a_name", MASTER_KEY):
        assert files_with(words, own_server.data) == []
    assert files_with("strongroom", own_server.data)  # so the search finds what is there


def files_with(words: str, directory: Path) -> list[str]:
    found = subprocess.run(
        ["grep", "-rlaF", words, directory], capture_output=True, text=True, check=False
    )
    return found.stdout.splitlines()
