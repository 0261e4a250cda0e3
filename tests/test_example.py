"""The example does what its README says, as processes, through restarts, kills and wrong keys."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from strongroom.errors import MasterKeyMissing, WrongMasterKey
from strongroom.testing import leak_scan
from support.example import Example, running_example

ROOT = Path(__file__).parents[1]
OWN = ("__node_meta", "__keystore", "__binding_store")


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    with running_example(tmp_path) as example:
        yield example


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


@pytest.mark.slow
def test_a_sentinel_that_was_killed_comes_back_with_its_routes(example: Example) -> None:
    example.make("start")
    assert example.total() == 1
    os.kill(example.pid("sentinel"), signal.SIGKILL)
    example.make("start")
    assert example.total() == 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_init_keeps_the_former_key_and_says_how_to_go_back_to_it(example: Example) -> None:
    assert "The former key" not in example.make("init")
    example.make("start")
    assert example.total() == 1
    example.make("stop")
    keys = contents(example.home / "config")
    said = example.make("init")
    assert "The data here needs the former key" in said
    (former,) = (example.home / "config").glob(f"before-{datetime.now(UTC):%Y-%m-%d}*")
    assert stat.S_IMODE(former.stat().st_mode) == 0o700
    back = re.search(r"^ +make stop && (cp .+)$", said, re.MULTILINE)
    assert back
    subprocess.run(back[1], shell=True, check=True)
    example.make("start")
    assert example.total() == 2
    assert keys.items() <= contents(example.home / "config").items()
    example.make("clean")
    assert list(example.home.rglob(".env.*")) == []


@pytest.mark.slow
def test_every_step_works_on_a_fresh_clone(tmp_path: Path) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    here = Example(tmp_path)
    for directory in (tmp_path / "examples" / "encrypted-storage", tmp_path):
        try:
            steps = ["make", f"PORT={here.port}", "start", "run"]
            done = subprocess.run(steps, cwd=directory, capture_output=True, text=True, check=False)
            assert "Total stored values: 1" in done.stdout, done.stdout + done.stderr
        finally:
            subprocess.run(["make", "clean"], cwd=directory, check=True)


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
