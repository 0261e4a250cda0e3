"""Settings come from the environment, once, and keep secrets to themselves."""

import os

import pytest

from strongroom.errors import SettingsError
from strongroom.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings.storage.profile == "memory"
    assert (settings.listener_host, settings.listener_port) == ("127.0.0.1", 8000)


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_environment({"FAME_LISTENER_PORT": ""}).listener_port == 8000


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FAME_LISTENER_PORT", "http"),
        ("FAME_SHOW_ENVELOPES", "perhaps"),
        ("FAME_LOG_LEVEL", "loud"),
        ("FAME_DELIVERY_PROFILE", "sometimes"),
    ],
)
def test_a_value_that_cannot_be_understood_names_its_variable(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({variable: text})


def test_no_repr_shows_a_secret() -> None:
    settings = Settings.from_environment(
        {"FAME_STORAGE_MASTER_KEY": "hunter2hunter2", "FAME_ADMISSION_TOKEN": "hunter2token"}
    )
    assert settings.storage.master_key == "hunter2hunter2"
    assert "hunter2" not in repr(settings) + str(settings)


def test_child_processes_do_not_inherit_the_master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.settings._taken", {})
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY", "a passphrase of mine")
    first = Settings.from_environment()
    assert "FAME_STORAGE_MASTER_KEY" not in os.environ
    assert Settings.from_environment() == first
