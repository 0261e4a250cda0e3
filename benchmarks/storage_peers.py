"""The stores that are compared: each takes and gives Pydantic models, durable when `set` returns.

Imports nothing of Strongroom's at the top, so that a peer can run under another interpreter.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

KEY = "00112233445566778899aabbccddeeff" * 2


class Item(BaseModel):
    """What is stored: a text of the size that is measured."""

    value: str


class Peer(Protocol):
    """One store."""

    async def open(self, directory: Path) -> None: ...
    async def set(self, key: str, item: Item) -> None: ...
    async def get(self, key: str) -> Item | None: ...
    def scan(self) -> AsyncIterator[Item]: ...
    async def close(self) -> None: ...


class Strongroom:
    """Ours, through the provider."""

    profile = "encrypted-sqlite"
    key: str | None = KEY

    async def open(self, directory: Path) -> None:
        from strongroom.settings import StorageSettings
        from strongroom.storage.provider import open_provider

        settings = StorageSettings(profile=self.profile, directory=directory, master_key=self.key)
        self.provider = await open_provider(settings)
        self.store = await self.provider.get_kv_store(Item, "items")

    async def set(self, key: str, item: Item) -> None:
        await self.store.set(key, item)

    async def get(self, key: str) -> Item | None:
        return await self.store.get(key)

    async def scan(self) -> AsyncIterator[Item]:
        async for entry in self.store.scan():
            yield entry.value

    async def close(self) -> None:
        await self.provider.close()


class StrongroomPlain(Strongroom):
    """Ours, without encryption."""

    profile = "sqlite"
    key = None


class RawSqlite:
    """The standard library's sqlite3 with the same durability: a commit for each set."""

    module: Any = sqlite3

    async def open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.connection = self.module.connect(directory / "items.db", isolation_level=None)
        self.unlock()
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS item (key TEXT PRIMARY KEY, value BLOB NOT NULL)"
        )

    def unlock(self) -> None:
        """Plain files need no key."""

    async def set(self, key: str, item: Item) -> None:
        data = item.model_dump_json().encode()
        self.connection.execute("INSERT OR REPLACE INTO item VALUES (?, ?)", (key, data))

    async def get(self, key: str) -> Item | None:
        row = self.connection.execute("SELECT value FROM item WHERE key = ?", (key,)).fetchone()
        return Item.model_validate_json(row[0]) if row else None

    async def scan(self) -> AsyncIterator[Item]:
        for _, data in self.connection.execute("SELECT key, value FROM item ORDER BY key"):
            yield Item.model_validate_json(data)

    async def close(self) -> None:
        self.connection.close()


class SqlCipher(RawSqlite):
    """SQLCipher, with a raw key."""

    def __init__(self) -> None:
        import sqlcipher3

        self.module = sqlcipher3

    def unlock(self) -> None:
        self.connection.execute(f"PRAGMA key = \"x'{KEY}'\"")


class DiskCache:
    """diskcache, set to sync like the others. It does not encrypt."""

    async def open(self, directory: Path) -> None:
        import diskcache

        self.cache = diskcache.Cache(
            str(directory), sqlite_synchronous=2, eviction_policy="none", size_limit=1 << 40
        )

    async def set(self, key: str, item: Item) -> None:
        self.cache.set(key, item.model_dump_json().encode())

    async def get(self, key: str) -> Item | None:
        data = self.cache.get(key)
        return Item.model_validate_json(data) if data else None

    async def scan(self) -> AsyncIterator[Item]:
        for key in sorted(self.cache.iterkeys()):
            yield Item.model_validate_json(self.cache[key])

    async def close(self) -> None:
        self.cache.close()


class PyKeyValue:
    """py-key-value-aio: its file store under its Fernet encryption. It has no scan of values."""

    async def open(self, directory: Path) -> None:
        import diskcache
        from key_value.aio.stores.disk import DiskStore
        from key_value.aio.wrappers.encryption import FernetEncryptionWrapper

        cache = diskcache.Cache(str(directory), sqlite_synchronous=2, size_limit=1 << 40)
        self.store = FernetEncryptionWrapper(
            DiskStore(disk_cache=cache), source_material=KEY, salt="salt"
        )

    async def set(self, key: str, item: Item) -> None:
        await self.store.put(key, item.model_dump())

    async def get(self, key: str) -> Item | None:
        data = await self.store.get(key)
        return Item.model_validate(data) if data else None

    def scan(self) -> AsyncIterator[Item]:
        raise NotImplementedError

    async def close(self) -> None:
        """It closes with the process."""


class Naylence:
    """naylence-runtime's encrypted SQLite provider."""

    async def open(self, directory: Path) -> None:
        from naylence.fame.security.credential.static_credential_provider import (
            StaticCredentialProvider,
        )
        from naylence.fame.storage.sqlite_storage_provider import SQLiteStorageProvider

        provider = SQLiteStorageProvider(
            str(directory), is_encrypted=True, master_key_provider=StaticCredentialProvider(KEY)
        )
        self.store = await provider.get_kv_store(Item, "items")

    async def set(self, key: str, item: Item) -> None:
        await self.store.set(key, item)

    async def get(self, key: str) -> Item | None:
        item: Item | None = await self.store.get(key)
        return item

    async def scan(self) -> AsyncIterator[Item]:
        for item in (await self.store.list()).values():
            yield item

    async def close(self) -> None:
        """It opens a connection for each call."""


PEERS: dict[str, type[Peer]] = {
    "strongroom": Strongroom,
    "strongroom-plain": StrongroomPlain,
    "sqlite3": RawSqlite,
    "sqlcipher": SqlCipher,
    "diskcache": DiskCache,
    "py-key-value": PyKeyValue,
    "naylence": Naylence,
}
