"""Where an agent can be served: under a name, on a sentinel, on the current fabric, in a loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from strongroom import Agent, BaseAgent, Fabric, Sentinel, Settings, operation
from strongroom.errors import (
    FabricError,
    InvalidAddress,
    InvalidArguments,
    NoRoute,
    SettingsError,
    StrongroomError,
    UnknownOperation,
)
from strongroom.messaging.address import FameAddress
from support.fabrics import Probe, eventually, fabric, sentinel, url
from support.processes import attach_url, free_port

ADDRESS = "probe@fame.fabric"


class HTTPGetAgent2(BaseAgent):
    """Says which hooks ran, which are plain functions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def start(self) -> None:  # type: ignore[override]
        self.seen.append("start")

    def stop(self) -> None:  # type: ignore[override]
        self.seen.append("stop")

    def on_message(self, message: Any) -> None:  # type: ignore[override]
        self.seen.append(message)


async def test_an_agent_without_an_address_is_served_at_its_node_s_path() -> None:
    async with Fabric(Settings()) as node:
        address = await node.serve(Probe())
        assert address == f"probe@{node.path}"
        assert isinstance(address, FameAddress)
        assert await Agent.remote_by_address(address).add(1, 2) == 3
        assert await node.serve(Probe(), "other") == f"other@{node.path}"
        assert node.describe()["bindings"] == [f"other@{node.path}", f"probe@{node.path}"]


async def test_others_reach_an_agent_by_its_node_s_path() -> None:
    async with sentinel() as hub, fabric(hub) as node:
        address = await node.serve(Probe())
        assert address == f"probe@{hub.path}/{node.id}"
        async with fabric(hub):
            assert await Agent.remote_by_address(address).add(1, 2) == 3
            with pytest.raises(NoRoute):
                await Agent.remote_by_address(f"nobody@{node.path}").add(1, 2)
        await node.unbind(address)
        with pytest.raises(NoRoute):
            await Agent.remote_by_address(address, fabric=node).add(1, 2)


async def test_a_name_moves_with_its_node_s_path() -> None:
    async with sentinel(node_id="first") as hub:
        port = hub.port
        node = await fabric(hub).__aenter__()
        await node.serve(Probe(), "probe")
    async with sentinel(node_id="second", listener_port=port):
        await eventually(lambda: node.path.startswith("/second/"))
        assert await Agent.remote_by_address(f"probe@{node.path}", fabric=node).add(1, 2) == 3
        await node.__aexit__(None, None, None)


async def test_names_come_from_classes_and_hooks_may_be_plain_functions() -> None:
    agent = HTTPGetAgent2()
    async with Fabric(Settings()) as node:
        address = await node.serve(agent)
        assert address.startswith("http_get_agent2@")
        await node.send_message(address, "hello")
        await eventually(lambda: len(agent.seen) == 2)
    assert agent.seen == ["start", "hello", "stop"]


async def test_a_name_is_served_once_on_a_node() -> None:
    first = HTTPGetAgent2()
    async with Fabric(Settings()) as node:
        address = await node.serve(first, "same")
        for name in ("same", address):
            with pytest.raises(FabricError, match="bound on this node already"):
                await node.serve(Probe(), name)
        assert first.seen == ["start"]
        with pytest.raises(InvalidAddress):
            await node.serve(Probe(), "two words")
    assert first.seen == ["start", "stop"]


async def test_an_agent_is_served_on_a_sentinel() -> None:
    async with sentinel() as hub:
        address = await hub.serve(Probe())
        await hub.serve(Probe(), ADDRESS)
        async with fabric(hub):
            for each in (address, ADDRESS):
                assert await Agent.remote_by_address(each).add(1, 2) == 3


async def test_aserve_can_make_its_node_a_sentinel() -> None:
    port = free_port()
    config = {
        "node": {"type": "Sentinel", "listeners": [{"type": "WebSocketListener", "port": port}]}
    }
    serving = asyncio.create_task(Probe().aserve(ADDRESS, root_config=config))
    async with Fabric(Settings(admission_url=attach_url(port), max_initial_attempts=0)):
        assert await Agent.remote_by_address(ADDRESS).add(1, 2) == 3
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_aserve_uses_the_current_fabric_and_leaves_it_open() -> None:
    async with sentinel() as hub, fabric(hub) as node:
        serving = Probe().serve(ADDRESS)  # in this loop
        assert serving is not None
        remote = Agent.remote_by_address(ADDRESS)
        await eventually(lambda: ADDRESS in node.describe()["bindings"])
        assert await remote.add(1, 2) == 3
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        with pytest.raises(NoRoute):
            await remote.add(1, 2)
        assert Fabric.current() is node


async def test_a_sentinel_can_be_run_by_its_class() -> None:
    port = free_port()
    config = {"node": {"type": "Sentinel", "listeners": [{"port": port}]}}
    serving = asyncio.create_task(Sentinel.aserve(root_config=config, log_level="warning"))
    async with Fabric(Settings(admission_url=attach_url(port), max_initial_attempts=0)):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_a_fabric_is_created_once_and_found_again() -> None:
    async with Fabric.get_or_create(Settings()) as outer:
        async with Fabric.get_or_create() as inner:
            assert inner is outer
        assert Fabric.current() is outer


async def test_requested_logicals_make_a_pool() -> None:
    asked = {"requested_logicals": ("*.fame.fabric",)}
    async with sentinel() as hub, fabric(hub, **asked) as one, fabric(hub, **asked) as two:
        for node in (one, two):
            assert await node.serve(Which(), "which@fame.fabric") == "which@fame.fabric"
        async with fabric(hub):
            remote = Agent.remote_by_address("which@fame.fabric")
            assert {await remote.node() for _ in range(50)} == {one.id, two.id}
            for node in (one, two):
                member = Agent.remote_by_address(f"which@{node.id}.fame.fabric")
                assert {await member.node() for _ in range(20)} == {node.id}


class Plain:
    """Is no agent."""

    capabilities = ("plain",)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @operation
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    async def start(self) -> None:
        self.seen.append("start")

    def stop(self) -> None:
        self.seen.append("stop")

    def on_message(self, message: Any) -> None:
        self.seen.append(message)


async def double(number: int) -> int:
    return 2 * number


def blocking(number: int) -> int:
    return 3 * number


@operation(name="counted")
async def count(below: int) -> AsyncIterator[int]:
    for number in range(below):
        yield number


async def test_what_is_no_agent_is_served_as_one() -> None:
    plain = Plain()
    async with Fabric(Settings()) as node:
        address = await node.serve(plain)
        assert address == f"plain@{node.path}"
        assert await Agent.remote_by_address(address).add(1, b=2) == 3
        assert await Agent.remote_by_capabilities(["plain"]).add(1) == 2
        with pytest.raises(InvalidArguments):
            await Agent.remote_by_address(address).add("one")
        with pytest.raises(UnknownOperation, match="plain has no operation 'other'"):
            await Agent.remote_by_address(address).other()
        await node.send_message(address, "hello")
        await eventually(lambda: len(plain.seen) == 2)
    assert plain.seen == ["start", "hello", "stop"]


async def test_functions_are_served() -> None:
    async with sentinel() as hub, fabric(hub) as node:
        await node.serve(double, "double@fame.fabric")
        tripled = Agent.remote_by_address(await node.serve(blocking))
        counted = Agent.remote_by_address(await node.serve(count))
        async with fabric(hub):
            assert await Agent.remote_by_address("double@fame.fabric").double(number=2) == 4
        assert await tripled.blocking(2) == 6
        assert [number async for number in counted.counted(3)] == [0, 1, 2]
        with pytest.raises(InvalidArguments):
            await tripled.blocking("two")
        await node.serve(Plain().add, "method@fame.fabric")
        assert await Agent.remote_by_address("method@fame.fabric").add(1) == 2


@pytest.mark.parametrize(
    "thing", [5, "text", object(), Plain, Probe, None], ids=lambda thing: type(thing).__name__
)
async def test_what_cannot_be_called_is_not_served(thing: object) -> None:
    async with Fabric(Settings()) as node:
        with pytest.raises(StrongroomError, match="is not a service"):
            await node.serve(thing, "thing@fame.fabric")


class Which(BaseAgent):
    @operation
    async def node(self) -> str:
        return Fabric.current().id


async def test_what_the_configuration_asks_for_and_we_lack_keeps_a_node_from_starting() -> None:
    gated = {"node": {"security": {"profile": "gated"}}}
    with pytest.raises(SettingsError, match="gated"):
        async with Fabric(root_config=gated):
            pass
    async with Fabric(Settings()):
        with pytest.raises(SettingsError, match="gated"):
            Fabric.get_or_create(root_config=gated)
    with pytest.raises(ValueError, match="either settings or root_config"):
        Fabric(Settings(), root_config=gated)
    async with sentinel() as hub:
        config = {"node": {"direct_parent_url": url(hub), "id": "named"}}
        async with Fabric.create(root_config=config) as node:
            assert node.path == f"{hub.path}/named"
