"""py-key-value on our storage, and FastMCP on that."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client, FastMCP
from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from key_value.aio.errors import InvalidKeyError, InvalidTTLError, SerializationError
from key_value.aio.protocols.key_value import (
    AsyncCullProtocol,
    AsyncDestroyCollectionProtocol,
    AsyncDestroyStoreProtocol,
    AsyncEnumerateCollectionsProtocol,
    AsyncEnumerateKeysProtocol,
    AsyncKeyValue,
)

from strongroom import StorageProvider, open_provider
from strongroom.errors import RecordInvalid
from strongroom.integrations.py_key_value import StrongroomStore
from strongroom.testing import leak_scan
from support.profiles import settings

LONG = "name " * 200


async def test_all_protocols_are_there(provider: StorageProvider) -> None:
    store = await StrongroomStore.open(provider)
    for protocol in (
        AsyncKeyValue,
        AsyncCullProtocol,
        AsyncDestroyCollectionProtocol,
        AsyncDestroyStoreProtocol,
        AsyncEnumerateCollectionsProtocol,
        AsyncEnumerateKeysProtocol,
    ):
        assert isinstance(store, protocol)


@pytest.mark.parametrize("collection", ["users", "", "a/b\0c", "ü" * 300, LONG])
@pytest.mark.parametrize("key", ["ada", "", "a.b", "\x01", LONG])
async def test_names_of_any_kind_are_told_apart(
    provider: StorageProvider, collection: str, key: str
) -> None:
    store = await StrongroomStore.open(provider)
    await store.put(key, {"n": 1}, collection=collection)
    await store.put(f"{key}2", {"n": 2}, collection=collection)
    assert await store.get(key, collection=collection) == {"n": 1}
    assert sorted(await store.keys(collection or None)) == sorted([key, f"{key}2"])
    assert await store.collections() == [collection or "default_collection"]
    assert await store.get(key, collection="other") is None


async def test_entries_expire(provider: StorageProvider) -> None:
    store = await StrongroomStore.open(provider)
    await store.put("a", {"n": 1}, ttl=0.2)
    value, ttl = await store.ttl("a")
    assert value == {"n": 1}
    assert ttl is not None
    assert 0 < ttl <= 0.2
    await asyncio.sleep(0.25)
    assert await store.ttl("a") == (None, None)
    assert await store.keys() == []


async def test_many_are_stored_together(provider: StorageProvider) -> None:
    store = await StrongroomStore.open(provider)
    await store.put_many(["a", "b", "a"], [{"n": 1}, {"n": 2}, {"n": 3}])
    assert await store.get_many(["a", "x", "b"]) == [{"n": 3}, None, {"n": 2}]
    assert await store.delete_many(["a", "a", "x"]) == 1
    assert await store.destroy_collection("default_collection")
    assert await store.destroy()


@pytest.mark.parametrize("value", [{"a": object()}, {"a": math.nan}, {"a": {1: 2}}, {"a": b"x"}])
async def test_what_would_not_come_back_is_refused(
    provider: StorageProvider, value: dict[str, Any]
) -> None:
    store = await StrongroomStore.open(provider)
    with pytest.raises(SerializationError):
        await store.put("a", value)
    assert await store.keys() == []


async def test_wrong_arguments_are_named(provider: StorageProvider) -> None:
    store = await StrongroomStore.open(provider)
    with pytest.raises(InvalidTTLError):
        await store.put("a", {}, ttl=-1)
    with pytest.raises(InvalidKeyError):
        await store.put("\ud800", {})


async def test_nothing_readable_is_on_the_disk_and_a_moved_row_is_refused(tmp_path: Path) -> None:
    provider = await open_provider(settings("encrypted-sqlite", tmp_path))
    store = await StrongroomStore.open(provider)
    await store.put("the-key-of-ada", {"token": "sesame-open"}, collection="oauth-tokens")
    other = await provider.get_bytes_store("py_key_value", owner="another")
    with pytest.raises(RecordInvalid, match="py-key-value/1"):
        await other.list()
    await provider.close()
    needles = ["the-key-of-ada", "sesame-open", "oauth-tokens"]
    assert leak_scan(tmp_path / "data", needles) == []


async def test_fastmcp_caches_responses_in_it(tmp_path: Path) -> None:
    calls = 0

    async def ask(storage: StorageProvider) -> str:
        nonlocal calls
        server: FastMCP[Any] = FastMCP("test")
        cache = await StrongroomStore.open(storage)
        server.add_middleware(ResponseCachingMiddleware(cache_storage=cache))

        @server.tool
        def greet(name: str) -> str:
            nonlocal calls
            calls += 1
            return f"Hello, {name}"

        async with Client(server) as client:
            result = await client.call_tool("greet", {"name": "Ada"})
            return str(result.data)

    for _ in range(2):  # the second time after a restart
        provider = await open_provider(settings("encrypted-sqlite", tmp_path))
        assert await ask(provider) == "Hello, Ada"
        await provider.close()
    assert calls == 1
