"""Directories with encrypted notes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from strongroom.settings import StorageSettings
from strongroom.storage.provider import open_provider
from strongroom.storage.sqlite.provider import SqliteProvider

KEY = "00112233445566778899aabbccddeeff" * 2
KEYSTORE = "__keystore_encrypted_value.db"
META = "__node_meta_encrypted_value.db"
NOTES = "notes_encrypted_value.db"


class Note(BaseModel):
    """A record of the tests."""

    text: str


@asynccontextmanager
async def provider_of(
    directory: Path, key: str | None = KEY, **settings: Any
) -> AsyncIterator[SqliteProvider]:
    """The provider of a directory: encrypted, unless `settings` name another profile."""
    chosen: dict[str, Any] = {
        "profile": "encrypted-sqlite",
        "directory": directory,
        "master_key": key,
    }
    provider = await open_provider(StorageSettings(**(chosen | settings)))
    assert isinstance(provider, SqliteProvider)
    try:
        yield provider
    finally:
        await provider.close()


async def fill(directory: Path, *texts: str, namespace: str = "notes", **settings: Any) -> None:
    """Store notes one by one, each under its text as the key."""
    async with provider_of(directory, **settings) as provider:
        notes = await provider.get_kv_store(Note, namespace)
        for text in texts:
            await notes.set(text, Note(text=text))


async def contents(directory: Path, namespace: str = "notes", **settings: Any) -> dict[str, str]:
    """The texts of all notes by key."""
    async with provider_of(directory, **settings) as provider:
        notes = await provider.get_kv_store(Note, namespace)
        return {key: note.text for key, note in (await notes.list()).items()}
