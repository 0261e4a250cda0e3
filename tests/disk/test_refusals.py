"""A directory with a fault is refused with the error for that fault, and left unchanged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strongroom.errors import (
    DirectoryInUse,
    ForeignStore,
    FormatUnsupported,
    KeystoreMissing,
    KeystoreOlder,
    MasterKeyInvalid,
    MasterKeyMissing,
    ProfileMismatch,
    StoreDamaged,
    StoreMissing,
    StoreNotEncrypted,
    StoreRolledBack,
    StoreSwapped,
    StrongroomError,
    WrongMasterKey,
)
from strongroom.keys.master import new_master_key
from support.files import fingerprint, flip
from support.notes import KEY, KEYSTORE, META, NOTES, Note, contents, fill, provider_of


async def assert_refused(
    directory: Path, error: type[StrongroomError], *mentions: str, **settings: Any
) -> None:
    """Opening fails with `error`, which names what `mentions` says, and changes no byte.

    Where the node starts and only a store fails, the node has noted its start.
    """
    before, started = fingerprint(directory), False
    with pytest.raises(StrongroomError) as caught:
        async with provider_of(directory, **settings) as opened:
            started = True
            await (await opened.get_kv_store(Note, "notes")).list()
    assert type(caught.value) is error, caught.value
    for mention in mentions:
        assert mention in str(caught.value)
    assert (
        "Try: " in str(caught.value)
        or "Set " in str(caught.value)
        or "Make one" in str(caught.value)
    )
    after = fingerprint(directory)
    if started:
        own = ("__keystore", "__node_meta")
        after |= {name: before[name] for name in before if name.startswith(own)}
    assert after == before


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    await fill(directory, "one", "two")
    return directory


async def test_what_was_stored_is_there_after_a_restart(data: Path) -> None:
    assert list(await contents(data)) == ["one", "two"]


async def test_a_wrong_master_key_names_directory_file_and_variable(data: Path) -> None:
    await assert_refused(
        data, WrongMasterKey, str(data), KEYSTORE, "FAME_STORAGE_MASTER_KEY", key=new_master_key()
    )


async def test_a_wrong_passphrase_is_a_wrong_master_key(tmp_path: Path) -> None:
    await fill(tmp_path, "one", key="correct horse battery staple")
    await assert_refused(tmp_path, WrongMasterKey, KEYSTORE, key="correct horse battery stable")
    await assert_refused(tmp_path, WrongMasterKey, KEYSTORE, key=KEY)
    assert list(await contents(tmp_path, key="correct horse battery staple")) == ["one"]


async def test_a_missing_master_key_is_recognised(data: Path) -> None:
    await assert_refused(data, MasterKeyMissing, "FAME_STORAGE_MASTER_KEY", key=None)


async def test_a_short_master_key_is_recognised(data: Path) -> None:
    await assert_refused(data, MasterKeyInvalid, "FAME_STORAGE_MASTER_KEY", "12", key="too short")


async def test_an_encrypted_directory_under_the_plain_profile_is_a_mismatch(data: Path) -> None:
    await assert_refused(
        data, ProfileMismatch, "FAME_STORAGE_PROFILE=encrypted-sqlite", profile="sqlite"
    )


async def test_a_plain_directory_under_the_encrypted_profile_is_a_mismatch(tmp_path: Path) -> None:
    await fill(tmp_path, "one", profile="sqlite", key=None)
    await assert_refused(tmp_path, ProfileMismatch, "FAME_STORAGE_PROFILE=sqlite")


async def test_a_plain_database_in_the_place_of_an_encrypted_one_is_refused(data: Path) -> None:
    (data / NOTES).unlink()
    plain = sqlite3.connect(data / NOTES)
    plain.execute("CREATE TABLE record (key, value)")
    plain.close()
    await assert_refused(data, StoreNotEncrypted, NOTES)


async def test_a_missing_keystore_is_recognised(data: Path) -> None:
    (data / KEYSTORE).unlink()
    await assert_refused(data, KeystoreMissing, KEYSTORE)


@pytest.mark.parametrize("name", [NOTES, META])
async def test_a_missing_store_is_recognised(data: Path, name: str) -> None:
    (data / name).unlink()
    await assert_refused(data, StoreMissing, name)


@pytest.mark.parametrize("name", [KEYSTORE, NOTES, META])
@pytest.mark.parametrize("size", [0, 1, 100, 4095])
async def test_a_truncated_file_is_damage(data: Path, name: str, size: int) -> None:
    (data / name).write_bytes((data / name).read_bytes()[:size])
    await assert_refused(data, StoreDamaged, name)


@pytest.mark.parametrize("name", [KEYSTORE, NOTES, META])
@pytest.mark.parametrize("offset", [0, 1, 3, 10, 11, 14, 15, 16, 17, 18, 20, 21, 24, 100, 4090])
async def test_a_changed_byte_in_header_or_first_page_is_damage(
    data: Path, name: str, offset: int
) -> None:
    flip(data / name, offset)
    await assert_refused(data, StoreDamaged, name)


async def test_an_unknown_format_is_recognised(data: Path) -> None:
    from strongroom.keys.derive import Header

    path = data / NOTES
    first = path.read_bytes()
    header = Header(9, first[3:11], first[11:15]).to_bytes()
    path.write_bytes(header + first[16:])
    await assert_refused(data, FormatUnsupported, NOTES, "format 9")


async def test_a_file_of_another_node_is_foreign(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    await fill(other, "three")
    shutil.copy(other / NOTES, data / NOTES)
    await assert_refused(data, ForeignStore, NOTES)


async def test_a_file_that_nobody_knows_is_foreign(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    await fill(other, "three", namespace="more")
    shutil.copy(other / "more_encrypted_value.db", data)
    await assert_refused(data, ForeignStore, "more_encrypted_value.db")


async def test_two_exchanged_files_are_recognised(data: Path) -> None:
    await fill(data, "three", namespace="more")
    one, two = data / NOTES, data / "more_encrypted_value.db"
    one.rename(data / "aside")
    two.rename(one)
    (data / "aside").rename(two)
    await assert_refused(data, StoreSwapped, "'more'")


async def test_a_keystore_of_another_node_with_the_same_master_key_opens_nothing(
    data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    await fill(other, "three")
    shutil.copy(other / KEYSTORE, data / KEYSTORE)
    await assert_refused(data, ForeignStore, META)


async def test_an_older_keystore_names_what_it_lacks(data: Path) -> None:
    old = (data / KEYSTORE).read_bytes()
    await fill(data, "three", namespace="more")
    (data / KEYSTORE).write_bytes(old)
    await assert_refused(data, KeystoreOlder, "more")


async def test_an_older_copy_of_a_store_is_recognised(data: Path) -> None:
    old = (data / NOTES).read_bytes()
    await fill(data, "three")
    (data / NOTES).write_bytes(old)
    await assert_refused(data, StoreRolledBack, NOTES)


async def test_a_copy_of_a_store_from_before_a_touch_is_recognised(data: Path) -> None:
    old = (data / NOTES).read_bytes()
    async with provider_of(data) as provider:
        notes = await provider.get_kv_store(Note, "notes")
        assert await notes.touch("one", ttl=60)
    (data / NOTES).write_bytes(old)
    await assert_refused(data, StoreRolledBack, NOTES)


async def test_a_diverged_copy_of_a_store_is_recognised(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    await fill(data, "three")
    await fill(other, "four", "five", "six")
    shutil.copy(other / NOTES, data / NOTES)
    await assert_refused(data, StoreRolledBack, NOTES)


@pytest.mark.parametrize("profile", ["sqlite", "encrypted-sqlite"])
async def test_a_directory_has_one_owner(tmp_path: Path, profile: str) -> None:
    key = KEY if profile == "encrypted-sqlite" else None
    async with provider_of(tmp_path, profile=profile, key=key):
        with pytest.raises(DirectoryInUse, match=str(tmp_path)):
            async with provider_of(tmp_path, profile=profile, key=key):
                pass
    await fill(tmp_path, "one", profile=profile, key=key)


async def test_plain_files_are_recognised_too(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"profile": "sqlite", "key": None}
    one, two = tmp_path / "one", tmp_path / "two"
    await fill(one, "a", **plain)
    await fill(one, "b", namespace="more", **plain)
    await fill(two, "c", **plain)
    kept = (one / "notes.db").read_bytes()

    def put(path: Path) -> Callable[[], object]:
        return lambda: (one / "notes.db").write_bytes(path.read_bytes())

    damages: list[tuple[Callable[[], object], type[StrongroomError]]] = [
        (put(two / "notes.db"), ForeignStore),
        (put(one / "more.db"), StoreSwapped),
        (lambda: (one / "notes.db").write_bytes(b""), StoreDamaged),
        ((one / "notes.db").unlink, StoreMissing),
    ]
    for damage, error in damages:
        damage()
        await assert_refused(one, error, "notes.db", **plain)
        (one / "notes.db").write_bytes(kept)
    assert list(await contents(one, **plain)) == ["a"]


async def test_only_the_owner_can_access_the_files(data: Path) -> None:
    assert data.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in data.iterdir()} == {0o600}


async def test_a_clean_stop_leaves_just_the_stores(data: Path) -> None:
    assert sorted(path.name for path in data.iterdir()) == sorted([KEYSTORE, META, NOTES])
