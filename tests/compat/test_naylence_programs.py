"""Programs that are written for Naylence run with their two import roots renamed.

There is one for each of its examples that needs no outside service and no part that we do not have;
docs/coming-from-naylence.md names those parts.
"""

from __future__ import annotations

import asyncio
import contextvars
from pathlib import Path
from typing import Any

import pytest

from strongroom import Sentinel, Settings
from strongroom.compat.naylence.agent import configs
from strongroom.compat.port import port
from strongroom.root_config import node_settings
from support.fabrics import eventually, url

PROGRAMS = Path(__file__).parent / "programs"


def program(name: str, way: str) -> dict[str, Any]:
    """The names of a program, as `sed` or `strongroom port` changes its imports."""
    text = (PROGRAMS / name).read_text()
    changed, problems = port(text)
    assert problems == []
    if way == "sed":
        changed = text.replace("from naylence.", "from strongroom.compat.naylence.")
    names: dict[str, Any] = {"__name__": "ported"}
    exec(compile(changed, name, "exec", dont_inherit=True), names)
    return names


@pytest.fixture(params=["sed", "port"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_programs_of_one_process(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = program("in_one_process.py", way)
    for each in ("hello", "echo", "rpc", "function", "a2a", "ping_pong", "with_a_background_task"):
        await names[each]()
    assert capsys.readouterr().out.splitlines() == [
        "Hello, World!",
        "Hello {'a': 1}",
        "7",
        "[0, 1, 1, 2, 3, 5]",
        "True",
        "TaskState.COMPLETED {'result': 'Hello!'}",
        "task-123 Pong: Hello, Pong!",
        "TaskState.WORKING TaskState.UNKNOWN",
    ]


async def test_programs_below_a_sentinel(
    way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = program("distributed.py", way)
    agents = ["Hello", "Able", "Cancellable", "Sending", "Receiving", "Analysing", "Chatting"]
    async with Sentinel(Settings(listener_port=0)) as hub:
        monkeypatch.setenv("FAME_DIRECT_ADMISSION_URL", url(hub))
        serving = [
            asyncio.get_running_loop().create_task(
                names[each]().aserve(
                    f"{each.lower()}@fame.fabric", root_config=configs.NODE_CONFIG
                ),
                context=contextvars.Context(),  # as in a process of its own
            )
            for each in (*agents, "Persistent")
        ]
        await eventually(lambda: len(routes(hub)) == len(serving))
        for each in ("hello", "able", "cancellable", "receiving", "analysing", "chatting"):
            await names[each]()
        await names["persistent"]()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
    assert capsys.readouterr().out.splitlines() == [
        "Hello, World!",
        "7",
        "[0, 1, 2]",
        "[STATUS] TaskState.WORKING",
        "[DATA ] progress: 0.1",
        "[DATA ] progress: 0.2",
        "[STATUS] TaskState.CANCELED",
        "{'notifications': [0, 1, 2]}",
        "{'one': 'text', 'other': 'NoRoute'}",
        "Ahoy 1 Ahoy 2",
        "None",
        "{'value': None, 'count': 0} {'value': 'a', 'count': 0}",
        "{'value': 'a', 'count': 1} True",
    ]


def routes(hub: Sentinel) -> list[str]:
    return [address for node in hub.describe()["nodes"] for address in node["addresses"]]


def test_the_configurations_read_the_variables() -> None:
    environ = {"FAME_LISTENER_PORT": "8123", "FAME_NODE_ID": "here"}
    sentinel = node_settings(configs.SENTINEL_CONFIG, environ)
    assert (sentinel.is_sentinel, sentinel.listener_port) == (True, 8123)
    node = node_settings(configs.NODE_CONFIG, environ)
    assert (node.is_sentinel, node.node_id, node.storage.profile) == (False, "here", "memory")
    client = node_settings(configs.CLIENT_CONFIG, {"FAME_DELIVERY_PROFILE": "at-least-once"})
    assert client.delivery_profile == "at-least-once"
