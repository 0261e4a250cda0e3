"""No file, log or temporary file on disk ever shows what was stored."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import BaseModel, create_model

from strongroom.keys.master import MasterKey
from strongroom.settings import StorageSettings
from strongroom.storage.provider import open_provider
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider
from strongroom.testing import leak_scan
from strongroom.testing.powerloss import Disk, Operation

VALUE = "the value that nobody may read who has only the files"
KEY = "the-key-of-a-record-that-nobody-may-read-either"
FIELD = "the_name_of_a_field_which_tells_what_is_kept"
MODEL = "TheNameOfTheModelWhichAlsoTellsWhatIsKept"
NEEDLES = [VALUE, KEY, FIELD, MODEL]

Secret: type[BaseModel] = create_model(MODEL, **{FIELD: (str, ...)})  # type: ignore[call-overload]


async def work(directory: Path) -> None:
    """Creation, short and long values, deletion, checkpoint, rotation of both kinds of keys."""
    settings = StorageSettings(
        profile="encrypted-sqlite", directory=directory, master_key="ab" * 32
    )
    provider = await open_provider(settings)
    assert isinstance(provider, EncryptedSqliteProvider)
    secrets = await provider.get_kv_store(Secret, "notes")
    for number in range(20):
        await secrets.set(f"{KEY}-{number}", Secret(**{FIELD: VALUE * (1 + number * 30)}))
    await asyncio.gather(*(secrets.delete(f"{KEY}-{number}") for number in range(5)))
    store = await provider.open("notes")
    store.connections.was_used = False
    await store.connections.close_if_idle()
    await secrets.set(KEY, Secret(**{FIELD: VALUE}), ttl=60)
    await provider.rotate()
    await provider.change_master(MasterKey("cd" * 32))
    await provider.drop("notes")
    await provider.close()


async def test_nothing_written_to_the_disk_shows_what_was_stored(tmp_path: Path) -> None:
    """Each write that ever reached the disk is looked at, not only what is left of them."""
    disk = Disk(tmp_path / "data")
    with disk.recorded():
        await work(tmp_path / "data")
    written = tmp_path / "written"
    written.mkdir()
    for number, told in enumerate(disk.operations):
        if told.kind == "write":
            (written / f"{number}-{told.name}").write_bytes(told.data)
    assert len(list(written.iterdir())) > 100
    assert leak_scan(written, NEEDLES) == []
    assert leak_scan(tmp_path / "data", NEEDLES) == []


async def test_all_files_are_clean_whenever_names_change(tmp_path: Path) -> None:
    """Temporaries and shared memory, too, which stand only in the middle of work."""
    disk = Disk(tmp_path / "data")
    seen: set[str] = set()

    def scan(operation: Operation) -> None:
        if operation.kind in ("rename", "link", "remove"):
            seen.update(path.suffix for path in (tmp_path / "data").iterdir())
            assert leak_scan(tmp_path / "data", NEEDLES) == []

    disk.refuse = scan
    with disk.recorded():
        await work(tmp_path / "data")
    assert {".db", ".db-wal", ".db-shm", ".new"} <= seen


async def test_the_same_work_under_the_plain_profile_is_seen_by_the_scan(tmp_path: Path) -> None:
    """So that a scan which finds nothing has looked for what would be there."""
    settings = StorageSettings(profile="sqlite", directory=tmp_path / "data")
    provider = await open_provider(settings)
    secrets = await provider.get_kv_store(Secret, "notes")
    await secrets.set(KEY, Secret(**{FIELD: VALUE}))
    found = {leak.needle for leak in leak_scan(tmp_path / "data", NEEDLES)}
    await provider.close()
    assert found >= {VALUE, KEY, FIELD}
