"""Sentinel, agent and client over real sockets: calls, streams, and all their failures."""

import asyncio
import logging
from typing import Any

import pytest
from pydantic import BaseModel

from strongroom import Agent, BaseAgent, Fabric, FameFabric, Settings, operation
from strongroom.errors import (
    AttachFailed,
    AttachRefused,
    CallInterrupted,
    CallTimeout,
    InvalidAddress,
    InvalidArguments,
    ListenFailed,
    MessageTooLarge,
    NoFabric,
    NoRoute,
    OperationFailed,
    SettingsError,
    UnknownOperation,
)
from strongroom.nodes.sentinel import Sentinel
from support.fabrics import (
    ADDRESS,
    Probe,
    eventually,
    fabric,
    sentinel,
    sentinel_agent_and_client,
    url,
)


async def test_a_call_takes_positional_and_keyword_arguments() -> None:
    async with sentinel_agent_and_client(Probe()):
        remote = Agent.remote_by_address(ADDRESS)
        assert await remote.add(1, 2) == 3
        assert await remote.add(1, b=2) == 3
        assert await remote.add(a=1) == 1
        assert await remote.renamed() == "renamed"


async def test_none_and_nulls_inside_results_survive() -> None:
    async with sentinel_agent_and_client(Probe()):
        remote = Agent.remote_by_address(ADDRESS)
        assert await remote.echo() is None
        assert await remote.echo({"a": None, "b": [None, 1]}) == {"a": None, "b": [None, 1]}


async def test_a_call_is_a_coroutine_to_asyncio() -> None:
    async with sentinel_agent_and_client(Probe()):
        remote = Agent.remote_by_address(ADDRESS)
        tasks = [asyncio.create_task(remote.echo(number)) for number in range(3)]
        assert await asyncio.gather(*tasks, remote.echo(3)) == [0, 1, 2, 3]


async def test_a_stream_longer_than_the_window_arrives_whole_and_in_order() -> None:
    async with sentinel_agent_and_client(Probe()):
        remote = Agent.remote_by_address(ADDRESS)
        assert [item async for item in remote.count(500)] == list(range(500))
        assert [item async for item in await remote.count(3, _stream=True)] == [0, 1, 2]


async def test_a_stream_called_for_one_result_gives_its_first_item() -> None:
    async with sentinel_agent_and_client(Probe()):
        assert await Agent.remote_by_address(ADDRESS).count(5) == 0


async def test_one_result_called_as_a_stream_is_one_item() -> None:
    async with sentinel_agent_and_client(Probe()):
        remote = Agent.remote_by_address(ADDRESS)
        assert [item async for item in remote.add(1, 2)] == [3]


async def test_a_stream_that_fails_gives_its_items_first() -> None:
    async with sentinel_agent_and_client(Probe()):
        items = []
        with pytest.raises(OperationFailed, match="enough"):
            async for item in Agent.remote_by_address(ADDRESS).fail_after(40):
                items.append(item)
        assert items == list(range(40))


async def test_a_stream_that_yields_none_ends_with_an_error_instead_of_silently() -> None:
    async with sentinel_agent_and_client(Probe()):
        with pytest.raises(OperationFailed, match="None"):
            async for _ in Agent.remote_by_address(ADDRESS).yield_none():
                pass


async def test_every_failure_has_its_own_error() -> None:
    async with sentinel_agent_and_client(Probe()):
        remote = Agent.remote_by_address(ADDRESS)
        with pytest.raises(OperationFailed, match="not today") as failed:
            await remote.fail("not today")
        assert failed.value.data == {"type": "ValueError"}
        with pytest.raises(UnknownOperation, match="nonsense"):
            await remote.nonsense()
        with pytest.raises(InvalidArguments) as invalid:
            await remote.add("one", b="two")
        assert [problem["loc"] for problem in invalid.value.data] == [["a"], ["b"]]
        with pytest.raises(InvalidArguments, match="missing"):
            await remote.add()
        with pytest.raises(NoRoute, match="nobody@fame"):
            await Agent.remote_by_address("nobody@fame.fabric").echo()
        with pytest.raises(NoRoute, match="nobody@fame"):
            async for _ in Agent.remote_by_address("nobody@fame.fabric").echo():
                pass
        with pytest.raises(CallTimeout, match="hang"):
            await remote.hang(_timeout=0.1)
        with pytest.raises(MessageTooLarge):
            await remote.echo("x" * 300_000)
        with pytest.raises(InvalidAddress):
            Agent.remote_by_address("nonsense")
        assert await remote.echo("still here") == "still here"


async def test_a_result_that_no_message_carries_is_reported_to_the_caller() -> None:
    class Large(BaseAgent[Any]):
        @operation
        async def blob(self, size: int) -> str:
            return "x" * size

    async with sentinel_agent_and_client(Large()):
        remote = Agent.remote_by_address(ADDRESS)
        assert len(await remote.blob(200_000)) == 200_000
        with pytest.raises(MessageTooLarge):
            await remote.blob(300_000)


async def test_a_call_is_interrupted_at_once_when_its_agent_is_lost() -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub) as client:
        async with fabric(hub) as node:
            await node.serve(agent, ADDRESS)
            call = asyncio.create_task(Probe.remote(ADDRESS, fabric=client).hang())
            await agent.entered.wait()
        async with asyncio.timeout(1):
            with pytest.raises(CallInterrupted):
                await call


async def test_a_call_is_interrupted_at_once_when_the_sentinel_is_lost() -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub) as node, fabric(hub):
        await node.serve(agent, ADDRESS)
        call = asyncio.create_task(Probe.remote(ADDRESS, fabric=Fabric.current()).hang())
        await agent.entered.wait()
        await hub.stop()
        async with asyncio.timeout(1):
            with pytest.raises(CallInterrupted):
                await call


async def test_a_caller_who_leaves_a_stream_stops_the_generator() -> None:
    agent = Probe()
    async with sentinel_agent_and_client(agent):
        async for item in Agent.remote_by_address(ADDRESS).count(1_000_000):
            if item == 5:
                break
        async with asyncio.timeout(1):
            await agent.left.wait()
        assert agent.yielded < 200


async def test_a_caller_who_vanishes_stops_the_generator() -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub) as node:
        await node.serve(agent, ADDRESS)
        async with fabric(hub):
            stream = aiter(Agent.remote_by_address(ADDRESS).count(1_000_000))
            assert await anext(stream) == 0
        async with asyncio.timeout(2):
            await agent.left.wait()


async def test_a_slow_reader_holds_up_nobody_else() -> None:
    agent = Probe()
    async with sentinel_agent_and_client(agent):
        remote = Agent.remote_by_address(ADDRESS)
        slow = aiter(remote.count(100_000))
        assert await anext(slow) == 0
        await asyncio.sleep(0.1)
        held = agent.yielded
        assert held < 200
        assert [item async for item in remote.count(500)] == list(range(500))
        assert await remote.add(1, 1) == 2


async def test_capabilities_find_an_agent() -> None:
    class Skilled(Probe):
        capabilities = ("math.add",)

    async with sentinel_agent_and_client(Skilled()):
        assert await Agent.remote_by_capabilities(["math.add"]).add(2, 2) == 4
        with pytest.raises(NoRoute):
            await Agent.remote_by_capabilities(["math.divide"]).add(2, 2)


async def test_a_pool_answers_under_every_name_it_has() -> None:
    async with sentinel_agent_and_client(Probe(), "math@*.fame.fabric"):
        for address in ("math@fame.fabric", "math@any.fame.fabric"):
            assert await Agent.remote_by_address(address).add(2, 2) == 4


async def test_plain_messages_arrive() -> None:
    agent = Probe()
    async with sentinel_agent_and_client(agent):
        await Fabric.current().send_message(ADDRESS, {"hello": ["world", None]})
        await eventually(lambda: agent.messages == [{"hello": ["world", None]}])


async def test_one_process_needs_no_sentinel() -> None:
    async with FameFabric.create(Settings()) as node:
        await node.serve(Probe(), ADDRESS)
        remote = Agent.remote_by_address(ADDRESS)
        assert await remote.add(1, 2) == 3
        assert [item async for item in remote.count(100)] == list(range(100))
        with pytest.raises(NoRoute):
            await Agent.remote_by_address("nobody@fame.fabric").echo()


async def test_an_operation_may_call_others() -> None:
    class Asker(BaseAgent[Any]):
        @operation
        async def ask(self, address: str) -> int:
            result: int = await Agent.remote_by_address(address).add(20, 22)
            return result

    async with sentinel_agent_and_client(Probe()) as hub, fabric(hub) as other:
        await other.serve(Asker(), "asker@fame.fabric")
        assert await Agent.remote_by_address("asker@fame.fabric").ask(ADDRESS) == 42


async def test_a_typed_remote_gives_models_and_the_plain_one_json() -> None:
    class Point(BaseModel):
        x: int

    class Mover(BaseAgent[Any]):
        @operation
        async def move(self, point: Point, by: int) -> Point | None:
            return Point(x=point.x + by)

    # Annotations of local classes can be read because this module does not postpone them.
    async with sentinel_agent_and_client(Mover()):
        assert await Mover.remote(ADDRESS).move(Point(x=1), by=2) == Point(x=3)
        assert await Agent.remote_by_address(ADDRESS).move({"x": 1}, 2) == {"x": 3}


def test_no_fabric_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(NoFabric, match="async with Fabric"):
        Agent.remote_by_address(ADDRESS)


async def test_start_runs_before_the_name_is_bound_and_stop_at_the_end() -> None:
    events = []

    class Watched(Probe):
        async def start(self) -> None:
            assert self.storage_provider is not None
            with pytest.raises(NoRoute):
                await Agent.remote_by_address(ADDRESS).echo()
            events.append("start")

        async def stop(self) -> None:
            events.append("stop")

    agent = Watched()
    before: object = agent.storage_provider
    assert before is None
    async with sentinel_agent_and_client(agent):
        assert await Agent.remote_by_address(ADDRESS).echo(1) == 1
    assert events == ["start", "stop"]
    after: object = agent.storage_provider
    assert after is None


async def test_the_error_for_a_port_in_use_names_the_port() -> None:
    async with sentinel() as hub:
        with pytest.raises(ListenFailed, match=f"port {hub.port}"):
            await sentinel(listener_port=hub.port).start()


async def test_the_error_for_a_missing_sentinel_says_so() -> None:
    async with sentinel() as hub:
        gone = url(hub)
    with pytest.raises(AttachFailed, match="No sentinel answers"):
        await Fabric(Settings(admission_url=gone)).start()


async def test_a_sentinel_with_a_token_refuses_nodes_without_it() -> None:
    async with sentinel(admission_token="sesame") as hub:
        async with fabric(hub, admission_token="sesame"):
            pass
        for wrong in ({}, {"admission_token": "other"}):
            with pytest.raises(AttachRefused, match="401"):
                await fabric(hub, **wrong).start()


async def test_no_port_is_opened_to_other_machines_without_admission() -> None:
    with pytest.raises(SettingsError, match="FAME_SECURITY_PROFILE=open"):
        await sentinel(listener_host="0.0.0.0").start()
    async with sentinel(listener_host="0.0.0.0", security_profile="open"):
        pass


async def test_names_return_after_the_sentinel_restarts() -> None:
    async with sentinel() as hub:
        port, node_id = hub.port, hub.id
        async with fabric(hub) as node, fabric(hub) as client:
            await node.serve(Probe(), ADDRESS)
            await hub.stop()
            again = Sentinel(Settings(listener_port=port, node_id=node_id))
            async with again:
                remote = Probe.remote(ADDRESS, fabric=client)
                assert await remote.echo("back") == "back"


async def test_without_a_sentinel_an_agent_and_a_failed_call_name_the_missing_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "strongroom")
    async with Fabric(Settings()) as node:
        await node.serve(Probe(), ADDRESS)
        assert f"only this process can call {ADDRESS}: FAME_DIRECT_ADMISSION_URL" in caplog.text
        with pytest.raises(NoRoute, match="FAME_DIRECT_ADMISSION_URL"):
            await Probe.remote("nobody@fame.fabric", fabric=node).echo()
