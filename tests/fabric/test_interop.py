"""Real Naylence peers, each in its own process, in place of each of ours.

They need Python 3.12 or newer. STRONGROOM_NAYLENCE_PYTHON names one that has them installed;
otherwise one is looked for, and they are installed for it under .venv.
"""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from strongroom import (
    Agent,
    Fabric,
    Settings,
    TaskFailed,
    TaskIdParams,
    TaskState,
    TaskStatusUpdateEvent,
    make_task_params,
)
from strongroom.errors import CallError, CallInterrupted, FabricError, NoRoute, OperationFailed
from support.processes import Program, attach_url, environment, free_port, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

OURS, REAL = "test@fame.fabric", "real@fame.fabric"
VENV = Path(sys.prefix) / "naylence"


@pytest.fixture(scope="session")
def python() -> str:
    """A Python that has the real peers."""
    named = os.environ.get("STRONGROOM_NAYLENCE_PYTHON")
    if named:
        return named
    with (Path(sys.prefix) / "naylence.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of this run may be installing it
        return install()


def install() -> str:
    installed = VENV / "bin/python"
    if not (VENV / "complete").exists():
        newer = find_python()
        if newer is None:
            pytest.skip("no Python 3.12 or newer is found, which Naylence needs")
        subprocess.run([newer, "-m", "venv", "--clear", VENV], check=True)
        pip = [str(installed), "-m", "pip", "install", "--quiet", "naylence-agent-sdk==0.4.12"]
        if subprocess.run(pip, check=False).returncode != 0:
            shutil.rmtree(VENV)
            pytest.skip("naylence-agent-sdk cannot be installed")
        (VENV / "complete").touch()
    return str(installed)


def find_python() -> str | None:
    versions = Path.home() / ".pyenv/versions"
    known = [str(path) for path in sorted(versions.glob("3.1[2-9].*/bin/python"))]
    for candidate in (*known, "python3.12", "python3.13", "python3.14"):
        check = "import sys, ssl; sys.exit(sys.version_info < (3, 12))"
        try:
            if subprocess.run([candidate, "-c", check], check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    return None


async def healthy(port: int) -> None:
    """Wait until a real sentinel answers."""
    url = f"http://127.0.0.1:{port}/fame/v1/attach/health"
    async with asyncio.timeout(20):
        while True:
            try:
                await asyncio.to_thread(urllib.request.urlopen, url)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                return


async def answers(address: str, within: float = 20.0) -> None:
    """Wait until somebody answers at `address`."""
    remote = Agent.remote_by_address(address)
    async with asyncio.timeout(within):
        while True:
            try:
                await remote.echo(1, _timeout=2)
            except FabricError:
                await asyncio.sleep(0.1)
            else:
                return


class World:
    """A sentinel with our agent and a real one, and our client."""

    def __init__(self, directory: Path, python: str, *, real_sentinel: bool, delivery: str) -> None:
        self.port = free_port()
        self.python = python
        self.delivery = delivery
        self.url = attach_url(self.port)
        self.is_real = real_sentinel
        if real_sentinel:
            self.hub = Program("naylence/sentinel.py", directory, python=python)
        else:
            self.hub = Program("sentinel.py", directory)
        self.ours = Program("agent.py", directory)
        self.real = Program("naylence/agent.py", directory, REAL, python=python)

    def settings(self, node_id: str) -> dict[str, object]:
        return {
            "FAME_DIRECT_ADMISSION_URL": self.url,
            "FAME_NODE_ID": node_id,
            "FAME_DELIVERY_PROFILE": self.delivery,
        }

    async def start_hub(self) -> None:
        variables = {"FAME_LISTENER_PORT": self.port, "FAME_NODE_ID": "hub"}
        if self.is_real:
            await self.hub.start(**variables)
            await healthy(self.port)
        else:
            await self.hub.start_and_wait(**variables)

    async def start_ours(self) -> None:
        await self.ours.start_and_wait(**self.settings("ours"))

    async def start_real(self) -> None:
        await self.real.start(**self.settings("real"))

    def real_client(self, *calls: list[Any]) -> list[dict[str, Any]]:
        """What a real client gets for calls of `[address, operation, args, kwargs, stream]`."""
        done = subprocess.run(
            [
                self.python,
                Path(__file__).parent / "programs/naylence/client.py",
                *(json.dumps(call) for call in calls),
            ],
            env=environment(**self.settings("real-client")),
            capture_output=True,
            check=True,
            timeout=60,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]


@asynccontextmanager
async def world(
    directory: Path, python: str, *, real_sentinel: bool, delivery: str = "at-most-once"
) -> AsyncIterator[World]:
    made = World(directory, python, real_sentinel=real_sentinel, delivery=delivery)
    async with running(made.hub, made.ours, made.real):
        await made.start_hub()
        await made.start_ours()
        await made.start_real()
        async with Fabric(Settings(admission_url=made.url)):
            await answers(REAL)
            yield made


SENTINELS = pytest.mark.parametrize("real_sentinel", [False, True], ids=["our hub", "real hub"])


@SENTINELS
async def test_a_real_client_calls_our_agent_and_a_real_one(
    tmp_path: Path, python: str, *, real_sentinel: bool
) -> None:
    async with world(tmp_path, python, real_sentinel=real_sentinel) as made:
        got = await asyncio.to_thread(
            made.real_client,
            [OURS, "echo", [[1, None]], {}, False],
            [OURS, "echo", [], {"value": "named"}, False],
            [OURS, "echo", [None], {}, False],
            [OURS, "numbers", [100], {}, True],
            [OURS, "nonsense", [], {}, False],
            [OURS, "echo", [], {}, False],
            [REAL, "add", [1], {"b": 2}, False],
            [REAL, "count", [100], {}, True],
            ["nobody@fame.fabric", "echo", [], {}, False],
        )
    assert got[:4] == [
        {"result": [1, None]},
        {"result": "named"},
        {"result": None},
        {"items": list(range(100))},
    ]
    assert "Method not found" in got[4]["error"]
    assert "missing" in got[5]["error"]
    assert got[6:8] == [{"result": 3}, {"items": list(range(100))}]
    assert "Unroutable to nobody@fame.fabric" in got[8]["error"]


@SENTINELS
async def test_our_client_calls_a_real_agent(
    tmp_path: Path, python: str, *, real_sentinel: bool
) -> None:
    async with world(tmp_path, python, real_sentinel=real_sentinel):
        remote = Agent.remote_by_address(REAL)
        assert await remote.add(1, b=2) == 3
        assert await remote.echo() is None
        assert [item async for item in remote.count(100)] == list(range(100))
        with pytest.raises(OperationFailed, match="not today"):
            await remote.fail("not today")
        with pytest.raises(CallError, match="Method not found"):
            await remote.nonsense()
        with pytest.raises(NoRoute):
            await Agent.remote_by_address("nobody@fame.fabric").echo(1)
        assert await Agent.remote_by_capabilities(["fame.capability.agent"]).echo(5) == 5
        assert await asyncio.gather(*(remote.add(n, n) for n in range(50))) == [
            2 * n for n in range(50)
        ]


@SENTINELS
async def test_our_client_who_leaves_a_stream_stops_our_agent(
    tmp_path: Path, python: str, *, real_sentinel: bool
) -> None:
    async with world(tmp_path, python, real_sentinel=real_sentinel):
        remote = Agent.remote_by_address(OURS)
        async for item in remote.numbers(10_000_000):
            if item == 50:
                break
        async with asyncio.timeout(1):
            while not (await remote.progress())[1]:
                await asyncio.sleep(0.05)
        # A real agent does not stop, and what it still sends must not block the others.
        real = Agent.remote_by_address(REAL)
        async for item in real.count(200):
            if item == 50:
                break
        assert await real.echo("still here") == "still here"


@SENTINELS
async def test_both_agents_are_found_again_after_the_sentinel_restarts(
    tmp_path: Path, python: str, *, real_sentinel: bool
) -> None:
    async with world(tmp_path, python, real_sentinel=real_sentinel) as made:
        assert await made.hub.stop(signal.SIGKILL) == -signal.SIGKILL
        await made.start_hub()
        back = time.monotonic()
        await answers(OURS, within=5)
        assert time.monotonic() - back < 3
        await answers(REAL, within=40)


@SENTINELS
async def test_a_killed_agent_is_noticed(
    tmp_path: Path, python: str, *, real_sentinel: bool
) -> None:
    async with world(tmp_path, python, real_sentinel=real_sentinel) as made:
        hanging = asyncio.create_task(Agent.remote_by_address(REAL).hang(_timeout=3))
        await asyncio.sleep(0.2)
        await made.real.stop(signal.SIGKILL)
        with pytest.raises(CallError) as caught:  # a real sentinel says nothing of calls under way
            await hanging
        assert real_sentinel or isinstance(caught.value, CallInterrupted)
        for _ in range(2):
            with pytest.raises(CallError):
                await Agent.remote_by_address(REAL).echo(1, _timeout=3)
        await made.start_real()
        await answers(REAL)


@SENTINELS
async def test_all_leave_cleanly(tmp_path: Path, python: str, *, real_sentinel: bool) -> None:
    async with world(tmp_path, python, real_sentinel=real_sentinel) as made:
        assert await made.ours.stop() == 0
        with pytest.raises(CallError):
            await Agent.remote_by_address(OURS).echo(1, _timeout=3)
        assert await made.real.stop() == 0


async def test_at_least_once_works_with_real_peers(tmp_path: Path, python: str) -> None:
    async with world(tmp_path, python, real_sentinel=False, delivery="at-least-once") as made:
        got = await asyncio.to_thread(
            made.real_client, [OURS, "increase", [], {}, False], [OURS, "numbers", [50], {}, True]
        )
        assert got == [{"result": 1}, {"items": list(range(50))}]
        kept = Settings(admission_url=made.url, delivery_profile="at-least-once")
        async with Fabric(kept):
            remote = Agent.remote_by_address(REAL)
            assert await asyncio.gather(*(remote.add(n, 1) for n in range(20))) == [*range(1, 21)]
            assert [item async for item in remote.count(50)] == list(range(50))
        got = await asyncio.to_thread(made.real_client, [OURS, "increase", [], {}, False])
        assert got == [{"result": 2}]


async def test_links_stay_up_by_heartbeats(tmp_path: Path, python: str) -> None:
    async with world(tmp_path, python, real_sentinel=True):
        await asyncio.sleep(35)  # a link without messages is dropped after 30 s
        for address in (OURS, REAL):
            assert await Agent.remote_by_address(address).echo(address, _timeout=2) == address


@SENTINELS
async def test_tasks_are_started_watched_and_canceled_both_ways(
    tmp_path: Path, python: str, *, real_sentinel: bool
) -> None:
    ours = Program("task_agent.py", tmp_path, "ours@fame.fabric")
    real = Program("naylence/task_agent.py", tmp_path, "steps@fame.fabric", python=python)
    async with world(tmp_path, python, real_sentinel=real_sentinel) as made, running(ours, real):
        await ours.start_and_wait(FAME_DIRECT_ADMISSION_URL=made.url)
        await real.start(FAME_DIRECT_ADMISSION_URL=made.url)
        client = Program("naylence/task_client.py", tmp_path, "ours@fame.fabric", python=python)
        await client.start(FAME_DIRECT_ADMISSION_URL=made.url)
        assert await client.wait() == 0, client.log.read_text()
        lines = [
            each for each in client.log.read_text().splitlines() if each[:1] in {"{", "[", '"'}
        ]
        assert [json.loads(line) for line in lines] == [
            {"a": 1},
            "ValueError: not today",
            ["working", 0, 1, 2, "canceled"],
            "Exception: The agent has no task with this id.",
        ]
        await check_real_tasks(Agent.remote_by_address("steps@fame.fabric"))


async def check_real_tasks(remote: Any) -> None:
    """Start, watch and cancel tasks of a real agent."""
    async with asyncio.timeout(20):
        while True:
            try:
                assert await remote.run_task({"steps": 2, "result": "done"}) == "done"
                break
            except NoRoute:
                await asyncio.sleep(0.1)
    with pytest.raises(TaskFailed, match="not today"):
        await remote.run_task({"steps": 0, "fails": True})
    params = make_task_params(id="watched", payload={"steps": 2, "waits": True})
    await remote.start_task(params)
    seen: list[Any] = []
    async for event in remote.subscribe_to_task_updates(params):
        if isinstance(event, TaskStatusUpdateEvent):
            seen.append(event.status.state.value)
        else:
            seen.append(event.artifact.parts[0].data["step"])
        if seen[-1] == 1:
            break
    assert seen == ["working", 0, 1]
    task = await remote.cancel_task(TaskIdParams(id="watched"))
    assert task.status.state is TaskState.CANCELED
