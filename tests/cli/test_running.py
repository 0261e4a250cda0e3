"""A sentinel and an agent run from the command line, and an operator looks after them meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STRONGROOM = str(Path(sys.executable).with_name("strongroom"))
AGENT = """
from pydantic import BaseModel
from strongroom import BaseAgent, operation

class Record(BaseModel):
    value: str

class Storage(BaseAgent):
    async def start(self):
        self._store = await self.storage_provider.get_kv_store(Record, namespace="records")

    @operation
    async def store_value(self, key: str, value: str) -> Record:
        await self._store.set(key, record := Record(value=value))
        return record

    @operation(streaming=True)
    async def all_values(self):
        async for entry in self._store.scan():
            yield entry.key
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    subprocess.run([STRONGROOM, "key", "new", "--out", tmp_path / "key"], check=True)
    (tmp_path / "my_agents.py").write_text(AGENT)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FAME_")}
    return {
        **clean,
        "XDG_RUNTIME_DIR": str(tmp_path),
        "FAME_STORAGE_PROFILE": "encrypted-sqlite",
        "FAME_STORAGE_MASTER_KEY_FILE": str(tmp_path / "key"),
        "FAME_LISTENER_PORT": port,
        "FAME_DIRECT_ADMISSION_URL": f"ws://127.0.0.1:{port}/fame/v1/attach/ws/downstream",
    }


@contextlib.contextmanager
def running(
    tmp_path: Path, name: str, environment: dict[str, str], *arguments: str
) -> Iterator[None]:
    """A node, once it answers at its admin socket; it must stop as it should."""
    own = {**environment, "FAME_STORAGE_DB_DIRECTORY": name}
    node = subprocess.Popen([STRONGROOM, *arguments], cwd=tmp_path, env=own)
    try:
        deadline = time.monotonic() + 20
        while node.poll() is None and run(tmp_path, environment, "status", "-d", name, code=None):
            assert time.monotonic() < deadline
        yield
    finally:
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0


def run(
    tmp_path: Path, environment: dict[str, str], *arguments: str, code: int | None = 0
) -> list[object] | int:
    done = subprocess.run(
        [STRONGROOM, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if code is None:
        return done.returncode
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_an_agent_is_run_called_and_looked_after(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    def do(*arguments: str, code: int = 0) -> list[object]:
        found = run(tmp_path, environment, *arguments, code=code)
        assert isinstance(found, list)
        return found

    upstream = environment.pop("FAME_DIRECT_ADMISSION_URL")
    with running(tmp_path, "hub", environment, "sentinel"):
        environment["FAME_DIRECT_ADMISSION_URL"] = upstream
        address = ("--address", "storage@fame.fabric")
        with running(tmp_path, "data", environment, "agent", "my_agents:Storage", *address):
            call = ("call", "storage@fame.fabric")
            assert do(*call, "store_value", "a", "1 2") == [{"value": "1 2"}]
            assert do(*call, "store_value", "key=b", 'value="3"') == [{"value": "3"}]
            assert do(*call, "all_values", "--stream") == ["a", "b"]
            do(*call, "burn", code=54)
            do("call", "nobody@fame.fabric", "burn", code=51)
            [status] = do("status", "-d", "hub", "--json")
            assert isinstance(status, dict)
            [node] = [node for node in status["nodes"] if node["attached"]]
            assert list(node["addresses"]) == ["storage@fame.fabric"]
            assert len(do("key", "rotate", "--data", "-d", "data", "--json")) == 3
            findings = do("doctor", "-d", "data", "--json")
            assert not [f for f in findings if isinstance(f, dict) and f["level"] == "problem"]
            assert do(*call, "all_values", "--stream") == ["a", "b"]
    assert [r["key"] for r in do("store", "scan", "records", "-d", "data", "--json")] == ["a", "b"]  # type: ignore[index]
