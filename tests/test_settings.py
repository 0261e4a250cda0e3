"""Settings come from the environment, once, and keep secrets to themselves."""

import asyncio
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom import BaseAgent, NotStarted
from strongroom.errors import SettingsError
from strongroom.keys.master import read_master_key
from strongroom.settings import Settings, secrets_taken_from


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
        ("FAME_LISTENER_PORT", "70000"),
        ("FAME_DIRECT_ADMISSION_URL", "ws://127.0.0.1:8000"),
        ("FAME_DIRECT_ADMISSION_URL", "ws://127.0.0.1:8000/"),
        ("FAME_DIRECT_ADMISSION_URL", "127.0.0.1:8000/fame/v1/attach/ws/downstream"),
        ("FAME_DIRECT_ADMISSION_URL", "http://127.0.0.1:8000/fame/v1/attach/ws/downstream"),
        ("FAME_DIRECT_ADMISSION_URL", "ws://127.0.0.1:99999/fame/v1/attach/ws/downstream"),
        ("FAME_DIRECT_ADMISSION_URL", "ws:///fame/v1/attach/ws/downstream"),
        ("FAME_DIRECT_ADMISSION_URL", "ws://[::1/fame"),
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


def test_a_value_given_in_python_is_checked_too() -> None:
    with pytest.raises(SettingsError, match="FAME_DELIVERY_PROFILE is 'sometimes'"):
        Settings(delivery_profile="sometimes")
    with pytest.raises(SettingsError, match="FAME_LISTENER_PORT is -1"):
        dataclasses.replace(Settings(), listener_port=-1)


@pytest.mark.parametrize("name", ["MAX_RUNNING_CALLS", "MAX_OPEN_STREAMS", "DELIVERY_ATTEMPTS"])
def test_a_limit_under_which_nothing_would_run_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"FAME_{name} is 0. Try: .* not less than 1"):
        Settings.from_environment({f"FAME_{name}": "0"})
    Settings.from_environment({f"FAME_{name}": "1"})


def test_a_choice_may_be_written_in_capitals() -> None:
    assert Settings.from_environment({"FAME_LOG_LEVEL": "DEBUG"}).log_level == "debug"


def test_each_type_of_value_is_parsed() -> None:
    environ = {
        "FAME_STORAGE_DB_DIRECTORY": "data",
        "FAME_LISTENER_PORT": "9000",
        "FAME_SHOW_ENVELOPES": "Yes",
        "FAME_NODE_ID": "one",
    }
    settings = Settings.from_environment(environ)
    assert settings.storage.directory == Path("data")
    assert (settings.listener_port, settings.show_envelopes, settings.node_id) == (
        9000,
        True,
        "one",
    )


def test_reading_the_environment_leaves_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY", "a passphrase of mine")
    first = Settings.from_environment()
    assert first.storage.master_key == "a passphrase of mine"
    assert Settings.from_environment() == first


class Launcher(BaseAgent):
    """Reports which FAME_ variables the programs that it starts inherit."""

    async def start(self) -> None:
        script = "import os; print(*sorted(name for name in os.environ if name[:5] == 'FAME_'))"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        raise NotStarted(output.decode())  # which ends the serving


async def test_child_processes_of_an_agent_do_not_inherit_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("FAME_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FAME_NODE_ID", "one")
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY", "a passphrase of mine")
    monkeypatch.setenv("FAME_ADMISSION_TOKEN", "a token")
    with pytest.raises(SystemExit):
        await Launcher().aserve("launcher@fame.fabric")
    assert capsys.readouterr().err.split() == ["strongroom:", "error:", "FAME_NODE_ID"]
    # They are back, so that the agent can be served again.
    assert os.environ["FAME_STORAGE_MASTER_KEY"] == "a passphrase of mine"


def test_the_command_that_prints_the_master_key_does_not_inherit_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\nenv | grep -q a-passphrase-of-before || echo a-key-of-mine\n")
    command.chmod(0o700)
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY_PREVIOUS", "a-passphrase-of-before")
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY_COMMAND", str(command))
    assert read_master_key(Settings.from_environment().storage).text == "a-key-of-mine"


NODE = """
from strongroom.keys.master import read_master_key
from strongroom.settings import StorageSettings
try:
    read_master_key(StorageSettings(profile="encrypted-sqlite"))
except Exception as error:
    print(error)
"""


def node_without_key() -> str:
    """What a node says that has inherited this process's environment."""
    return subprocess.run(
        [sys.executable, "-c", NODE], capture_output=True, text=True, check=True
    ).stdout


def test_a_child_from_which_the_key_was_taken_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FAME_")]:
        monkeypatch.delenv(name)
    assert "no variable names one" in node_without_key()
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY", "a passphrase of mine")
    before = dict(os.environ)
    with secrets_taken_from(os.environ):
        assert "took FAME_STORAGE_MASTER_KEY out of the environment" in node_without_key()
        with secrets_taken_from(os.environ):
            assert "took FAME_STORAGE_MASTER_KEY out of the environment" in node_without_key()
    assert dict(os.environ) == before
