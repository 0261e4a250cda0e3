"""The example does what its README says, as processes, through restarts, kills and wrong keys."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.errors import MasterKeyMissing, WrongMasterKey
from strongroom.testing import leak_scan

EXAMPLE = Path(__file__).parents[1] / "examples" / "encrypted-storage"
OWN = ("__node_meta", "__keystore", "__binding_store")


class Example:
    """A run of the example with a directory and a port of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def make(self, command: str, *, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "launch.py", command, f"--port={self.port}", f"--home={self.home}"],
            cwd=EXAMPLE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def total(self) -> int:
        found = re.search(r"^Total stored values: (\d+)$", self.make("run"), re.MULTILINE)
        assert found
        return int(found[1])

    def pid(self, name: str) -> int:
        return int((self.home / ".run" / f"{name}.pid").read_text())


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    example = Example(tmp_path)
    yield example
    example.make("clean")
    assert not list(tmp_path.rglob("*.db"))


def test_values_survive_a_restart_and_no_byte_of_them_is_readable(example: Example) -> None:
    example.make("start")
    said = example.make("run")
    instant = r"'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z'"
    record = rf"\{{'value': 'Hello, World!', 'created': {instant}\}}"
    assert re.fullmatch(
        rf"Stored value: {record}\n\nRetrieved value: {record}\n\nAll stored key-values:\n"
        rf"\['key_\d+', {record}\]\n\nTotal stored values: 1\n",
        said,
    )
    assert leak_scan(example.home / "data", ["Hello, World!", "storage@fame.fabric"]) == []
    example.make("stop")
    assert leak_scan(example.home / "data", ["Hello, World!", "storage@fame.fabric"]) == []
    files = {str(path.relative_to(example.home)) for path in example.home.glob("data/*/*")}
    agent = [*OWN, "storage_agent_namespace"]
    sentinel = [*OWN, "__route_store"]
    assert files == {
        *(f"data/agent/{name}_encrypted_value.db" for name in agent),
        *(f"data/sentinel/{name}_encrypted_value.db" for name in sentinel),
    }
    example.make("start")
    assert example.total() == 2


def test_values_survive_a_kill_of_the_agent(example: Example) -> None:
    example.make("start")
    assert example.total() == 1
    os.kill(example.pid("agent"), signal.SIGKILL)
    example.make("start")
    assert example.total() == 2


def test_a_sentinel_that_was_killed_comes_back_with_its_routes(example: Example) -> None:
    example.make("start")
    assert example.total() == 1
    os.kill(example.pid("sentinel"), signal.SIGKILL)
    example.make("start")
    assert example.total() == 2


def test_start_never_replaces_a_key_and_init_always_does(example: Example) -> None:
    example.make("start")
    example.make("stop")
    example.make("start")
    example.make("stop")
    before = contents(example.home / "data")
    example.make("init")
    said = example.make("start", fails=True)
    assert f"status {WrongMasterKey.exit_code}" in said
    assert "__keystore_encrypted_value.db" in said
    assert "FAME_STORAGE_MASTER_KEY" in said
    assert contents(example.home / "data") == before


def test_a_missing_master_key_stops_the_agent_with_a_sentence(example: Example) -> None:
    example.make("init")
    path = example.home / "config" / ".env.agent"
    path.write_text(path.read_text().replace("FAME_STORAGE_MASTER_KEY=", "UNUSED="))
    said = example.make("start", fails=True)
    assert f"status {MasterKeyMissing.exit_code}" in said
    assert "strongroom key new" in said


def test_a_port_that_is_taken_is_named(example: Example) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", example.port))
        taken.listen()
        assert str(example.port) in example.make("start", fails=True)


def test_the_client_says_when_nothing_runs(example: Example) -> None:
    assert "make start" in example.make("run", fails=True)


def test_a_verbose_run_shows_the_envelopes(example: Example) -> None:
    example.make("start")
    assert '"type":"Data"' in example.make("run-verbose").replace(" ", "")


def test_a_process_id_that_somebody_else_got_is_left_alone(example: Example) -> None:
    example.make("start")
    example.make("stop")
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with bystander:
        (example.home / ".run" / "agent.pid").write_text(str(bystander.pid))
        example.make("stop")
        assert "does not run" in example.make("status")
        assert bystander.poll() is None
        bystander.kill()


def test_the_demo_counts_to_one_and_then_to_two(example: Example) -> None:
    said = example.make("demo")
    assert re.findall(r"Total stored values: (\d)", said) == ["1", "2"]
    assert not (example.home / ".demo").exists()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
