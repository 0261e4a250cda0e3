"""A provider is chosen by name, and the error for a wrong name says what to do."""

import importlib.metadata
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from strongroom.errors import (
    InvalidNamespace,
    NotStarted,
    SettingsError,
    StoreClosed,
    UnknownProfile,
)
from strongroom.settings import StorageSettings
from strongroom.storage import MemoryProvider, open_provider
from strongroom.storage import provider as providers
from strongroom.storage.keys import prefix_end
from strongroom.storage.records import check_namespace
from strongroom.storage.sqlite.provider import SqliteProvider


class Filed(MemoryProvider):
    needs_directory = True
    started = False

    async def start(self) -> None:
        self.started = True


class NoProvider:
    pass


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("made_up")
    made.Filed, made.NoProvider = Filed, NoProvider  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", made)


def _install(monkeypatch: pytest.MonkeyPatch, **plugins: str) -> None:
    points = [
        importlib.metadata.EntryPoint(name, value, providers.ENTRY_POINTS)
        for name, value in plugins.items()
    ]
    monkeypatch.setattr(providers, "entry_points", lambda group: points)


async def test_memory_is_the_default() -> None:
    provider = await open_provider(StorageSettings())
    assert type(provider) is MemoryProvider


async def test_a_class_is_named_by_module_and_name_and_started(tmp_path: Path) -> None:
    settings = StorageSettings(profile="made_up:Filed", directory=tmp_path)
    provider = await open_provider(settings)
    assert type(provider) is Filed
    assert provider.started
    assert provider.settings is settings


async def test_an_entry_point_is_named_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _install(monkeypatch, filed="made_up:Filed")
    provider = await open_provider(StorageSettings(profile="filed", directory=tmp_path))
    assert type(provider) is Filed


async def test_an_entry_point_may_not_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, memory="made_up:Filed")
    with pytest.raises(UnknownProfile, match="'memory' is a built-in storage profile"):
        await open_provider(StorageSettings())


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        ("memroy", "Try: memory, or package.module:Class"),
        ("zzz", "Try: memory, .*filed, or package.module:Class"),
        ("made_up:Absent", "made_up:Absent cannot be loaded: AttributeError"),
        ("no_such_module:Class", "cannot be loaded: ModuleNotFoundError"),
        ("made_up:NoProvider", "made_up:NoProvider is not a subclass"),
    ],
)
async def test_the_error_for_an_unknown_profile_names_the_choices(
    monkeypatch: pytest.MonkeyPatch, profile: str, sentence: str
) -> None:
    _install(monkeypatch, filed="made_up:Filed")
    with pytest.raises(UnknownProfile, match=sentence):
        await open_provider(StorageSettings(profile=profile))


async def test_a_provider_of_files_needs_a_directory() -> None:
    with pytest.raises(SettingsError, match="FAME_STORAGE_DB_DIRECTORY is not set"):
        await open_provider(StorageSettings(profile="made_up:Filed"))


async def test_a_master_key_beside_a_plain_profile_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        await open_provider(StorageSettings(master_key="a long passphrase"))
    assert "'memory' does not encrypt" in caplog.text
    assert "passphrase" not in caplog.text


@pytest.mark.parametrize("name", ["notes", "A", "x" * 120, "a.b-c_d", "0", "__agent_x", "__other"])
def test_a_namespace_can_be_called(name: str) -> None:
    check_namespace(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * 121, ".a", "a.", "a/b", "..", "é", "a b", "a\n", "con", "NUL.txt"),
        *("x_encrypted_value", "__", "___x", "__é"),
    ],
)
def test_a_namespace_cannot_be_called(name: str) -> None:
    with pytest.raises(InvalidNamespace):
        check_namespace(name)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("", None), ("a", "b"), ("a\U0010ffff", "b"), ("\U0010ffff", None), ("\ud7ff", "\ue000")],
)
def test_the_first_string_after_a_prefix(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end


async def test_a_provider_of_files_that_was_not_started_says_so_and_closes(tmp_path: Path) -> None:
    provider = SqliteProvider(StorageSettings(profile="sqlite", directory=tmp_path / "data"))
    await provider.close()
    for call in (
        provider.open("notes"),
        provider.namespaces(),
        provider.drop("notes"),
        provider.audit(),
        provider.note("exported"),
    ):
        with pytest.raises(NotStarted, match=r"Try: await provider\.start"):
            await call
    assert not (tmp_path / "data").exists()
    await provider.start()
    assert await provider.namespaces() == ["__node_meta"]
    await provider.close()
    with pytest.raises(StoreClosed):
        await provider.open("notes")


class Note(BaseModel):
    text: str


@pytest.mark.parametrize("name", ["__keystore", "__node_meta", "__agent_x", "__other", "__"])
async def test_users_cannot_open_the_namespaces_of_the_node(name: str) -> None:
    provider = MemoryProvider()
    with pytest.raises(InvalidNamespace):
        await provider.get_kv_store(Note, name)
    assert await provider.namespaces() == []


async def test_the_node_opens_its_own_namespaces_and_no_others(tmp_path: Path) -> None:
    provider = SqliteProvider(StorageSettings(profile="sqlite", directory=tmp_path))
    await provider.start()
    await (await provider.own_store(Note, "__agent_x")).set("a", Note(text="x"))
    for name in ("notes", "__keystore", "__KEYSTORE"):
        with pytest.raises(InvalidNamespace):
            await provider.own_store(Note, name)
    assert await provider.namespaces() == ["__agent_x", "__node_meta"]
    await provider.close()


async def test_providers_and_stores_show_what_they_are(tmp_path: Path) -> None:
    memory = MemoryProvider()
    assert repr(memory) == "<MemoryProvider>"
    assert repr(await memory.get_kv_store(Note, "notes")) == "<KeyValueStore 'notes' of Note>"
    provider = SqliteProvider(StorageSettings(profile="sqlite", directory=tmp_path))
    assert repr(provider) == f"<SqliteProvider in {tmp_path}>"
    await provider.start()
    store = await provider.open("notes")
    assert repr(store) == f"<SqliteStore 'notes' in {tmp_path / 'notes.db'}>"
    await provider.close()
