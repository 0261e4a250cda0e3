"""The audit log records what happened, and shows if somebody changed it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from strongroom.errors import AuditBroken
from strongroom.keys.audit import AuditLine
from strongroom.keys.master import MasterKey, new_master_key
from strongroom.settings import StorageSettings
from strongroom.storage.provider import NODE_META
from strongroom.storage.records import Write
from strongroom.storage.sqlite.files import AUDIT
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider

KEY = new_master_key()
KEYSTORE = "__keystore_encrypted_value.db"


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[EncryptedSqliteProvider]:
    settings = StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=KEY)
    provider = EncryptedSqliteProvider(settings)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.close()


async def verify(provider: EncryptedSqliteProvider) -> int:
    return await provider.verify_audit()


async def rewrite(provider: EncryptedSqliteProvider, number: int, line: AuditLine | None) -> None:
    meta = await provider.open(NODE_META)
    value = msgspec.json.encode(line) if line else None
    await meta.apply([Write(f"{AUDIT}{number:010}", value)])


async def test_openings_rotations_drops_and_exports_are_noted(tmp_path: Path) -> None:
    async with opened(tmp_path) as provider:
        await provider.open("notes")
        await provider.rotate(["notes"])
        await provider.change_master(MasterKey(KEY))
        await provider.note("exported", "notes", "0 records")
        await provider.drop("notes")
    async with opened(tmp_path) as provider:
        lines = await provider.audit()
        assert [(line.event, line.namespace) for line in lines] == [
            ("opened", None),
            ("rotation began", None),
            ("data key rotated", "notes"),
            ("master key changed", None),
            ("exported", "notes"),
            ("dropped", "notes"),
            ("opened", None),
        ]
        assert await verify(provider) == 7


async def test_a_changed_missing_or_cut_off_line_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as provider:
        for number in range(3):
            await provider.note("exported", detail=str(number))
        assert await verify(provider) == 4
        second, last = (await provider.audit())[1], (await provider.audit())[3]
        await rewrite(provider, 2, msgspec.structs.replace(second, detail="9"))
        with pytest.raises(AuditBroken, match=r"Line 2 .* changed"):
            await verify(provider)
        await rewrite(provider, 2, None)
        with pytest.raises(AuditBroken, match=r"Line 2 .* missing"):
            await verify(provider)
        await rewrite(provider, 2, second)
        await rewrite(provider, 4, None)
        with pytest.raises(AuditBroken, match="ends at line 3, and 4"):
            await verify(provider)
        await rewrite(provider, 4, last)
        assert await verify(provider) == 4


async def test_an_older_keystore_neither_loses_lines_nor_hides(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with opened(data):
        pass
    shutil.copy(data / KEYSTORE, tmp_path)
    async with opened(data) as provider:
        await provider.note("exported", "notes")
    shutil.copy(tmp_path / KEYSTORE, data)
    async with opened(data) as provider:
        events = [line.event for line in await provider.audit()]
        assert events == ["opened", "opened", "exported", "older keystore", "opened"]
        assert await verify(provider) == 5


async def test_a_line_that_did_not_reach_its_store_comes_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as provider:

        async def nothing() -> None:
            return

        monkeypatch.setattr(provider, "_remember_keystore", nothing)
        await provider.note("exported", "notes")
        assert len(await provider.audit()) == 1
    async with opened(tmp_path) as provider:
        events = [line.event for line in await provider.audit()]
        assert events == ["opened", "exported", "opened"]
        assert await verify(provider) == 3
