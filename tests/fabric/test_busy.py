"""How many requests run at a time, who gets the places, and what the others are told."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from strongroom import Agent, Fabric, Settings, operation
from strongroom.errors import Busy, CallError, InvalidArguments, NoRoute
from strongroom.messaging import delivery, flow
from strongroom.messaging.places import Place, Places
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel
from support.links import (
    MemoryNetwork,
    in_virtual_time,
    network,  # noqa: F401 - a fixture
)
from support.peer import raw_child, say


class Slow(Probe):
    """An agent whose handling of messages that say "flood" waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.stuck = 0

    async def on_message(self, message: Any) -> None:
        if message == "flood":
            self.stuck += 1
            await self.gate.wait()
        await super().on_message(message)


class Crowded(Probe):
    """Calls that wait until the test lets them go, and calls that call their own node."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.waiting = 0

    @operation
    async def wait(self) -> str:
        self.waiting += 1
        await self.gate.wait()
        return "done"

    @operation
    async def relay(self, value: int) -> Any:
        return await Agent.remote_by_address(ADDRESS).echo(value)

    @operation
    async def relay_many(self, values: list[int]) -> Any:
        remote = Agent.remote_by_address(ADDRESS)
        return await asyncio.gather(*(remote.echo(value) for value in values))

    @operation(streaming=True)
    async def subscribe(self) -> AsyncIterator[int]:
        yield 0
        self.waiting += 1
        await self.gate.wait()

    async def on_message(self, message: Any) -> None:
        await super().on_message(message)
        await self.gate.wait()


async def test_the_surplus_of_calls_is_refused_at_once_and_the_rest_is_answered() -> None:
    agent = Crowded()
    async with sentinel() as hub, fabric(hub, max_running_calls=20) as node, fabric(hub) as client:
        await node.serve(agent, ADDRESS)
        remote = Crowded.remote(ADDRESS, fabric=client)
        running = [asyncio.create_task(remote.wait()) for _ in range(10)]
        await eventually(lambda: agent.waiting == 10)
        with pytest.raises(Busy, match="10 calls run on the agent's node") as caught:
            await remote.wait()
        assert (caught.value.code, isinstance(caught.value, CallError)) == ("BUSY", True)
        agent.gate.set()
        assert await asyncio.gather(*running) == ["done"] * 10
        assert agent.waiting == 10
        assert await remote.echo("and now") == "and now"


async def test_one_source_leaves_room_for_another() -> None:
    agent = Crowded()
    async with (
        sentinel() as hub,
        fabric(hub, max_running_calls=20) as node,
        fabric(hub) as greedy,
        fabric(hub) as other,
    ):
        await node.serve(agent, ADDRESS)
        calls = [
            asyncio.create_task(Crowded.remote(ADDRESS, fabric=greedy).wait()) for _ in range(50)
        ]
        await eventually(lambda: sum(call.done() for call in calls) == 40)
        assert await Crowded.remote(ADDRESS, fabric=other).echo("hello") == "hello"
        agent.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, Busy) for result in results) == 40
        assert results.count("done") == 10


@pytest.mark.parametrize("number", [60, 1300])
async def test_operations_that_wait_for_their_own_node_hold_no_place(number: int) -> None:
    limit = max(number // 2, 300)  # more than arrive in one turn of the loop
    async with (
        sentinel() as hub,
        fabric(hub, max_running_calls=limit) as node,
        fabric(hub) as client,
    ):
        await node.serve(Crowded(), ADDRESS)
        remote = Crowded.remote(ADDRESS, fabric=client)
        answers = await asyncio.gather(*(remote.relay(each) for each in range(number)))
        assert answers == list(range(number))
        assert await remote.relay_many(list(range(50))) == list(range(50))
        await eventually(lambda: node._running.incoming._calls.taken == 0)


async def test_idle_subscribers_block_no_calls() -> None:
    agent = Crowded()
    async with sentinel() as hub, fabric(hub, max_running_calls=4) as node, fabric(hub) as client:
        await node.serve(agent, ADDRESS)
        remote = Crowded.remote(ADDRESS, fabric=client)
        streams = [remote.subscribe() for _ in range(50)]
        assert await asyncio.gather(*(anext(stream) for stream in streams)) == [0] * 50
        assert await remote.echo("hello") == "hello"
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        await eventually(lambda: node._running.incoming._streams.taken == 0)


async def test_the_surplus_of_streams_is_refused() -> None:
    async with sentinel() as hub, fabric(hub, max_open_streams=4) as node, fabric(hub) as client:
        await node.serve(Crowded(), ADDRESS)
        remote = Crowded.remote(ADDRESS, fabric=client)
        streams = [remote.subscribe() for _ in range(2)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(Busy, match="2 streams"):
            await anext(remote.subscribe())
        assert await remote.echo("hello") == "hello"


async def test_plain_messages_wait_for_a_place_and_keep_their_order() -> None:
    agent = Crowded()
    async with sentinel() as hub, fabric(hub, max_running_calls=4) as node, fabric(hub) as client:
        await node.serve(agent, ADDRESS)

        async def send() -> None:
            for number in range(100):
                await client.send_message(ADDRESS, number)

        sending = asyncio.create_task(send())
        await eventually(lambda: agent.messages == [0])
        agent.gate.set()
        await sending
        await eventually(lambda: agent.messages == list(range(100)))


@in_virtual_time
async def test_an_at_least_once_call_to_a_busy_agent_is_sent_again(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent, twice = Crowded(), {"delivery_profile": "at-least-once"}
    async with (
        sentinel() as hub,
        fabric(hub, max_running_calls=4, **twice) as node,
        fabric(hub, **twice) as client,
    ):
        await node.serve(agent, ADDRESS)
        remote = Crowded.remote(ADDRESS, fabric=client)
        calls = [asyncio.create_task(remote.wait()) for _ in range(6)]
        await asyncio.sleep(1)
        assert agent.waiting == 2
        agent.gate.set()
        assert await asyncio.gather(*calls) == ["done"] * 6


async def test_a_stopping_node_refuses_calls_and_lets_those_that_run_finish() -> None:
    agent = Crowded()
    async with sentinel() as hub, fabric(hub) as client:
        node = fabric(hub, stop_grace_seconds=60)
        await node.start()
        await node.serve(agent, ADDRESS)
        remote = Crowded.remote(ADDRESS, fabric=client)
        running = asyncio.create_task(remote.wait())
        await eventually(lambda: agent.waiting == 1)
        stopping = asyncio.create_task(node.stop())
        await eventually(lambda: node._running.incoming._is_leaving)
        with pytest.raises(NoRoute, match="is stopping; the call did not run"):
            await remote.wait()
        agent.gate.set()
        assert await running == "done"
        await stopping


@in_virtual_time
async def test_calls_that_outlast_the_grace_period_are_interrupted(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent, loop = Probe(), asyncio.get_running_loop()
    async with sentinel() as hub, fabric(hub) as client:
        node = fabric(hub, stop_grace_seconds=7)
        await node.start()
        await node.serve(agent, ADDRESS)
        call = asyncio.create_task(Probe.remote(ADDRESS, fabric=client, timeout=60).hang())
        await agent.entered.wait()
        begun = loop.time()
        await node.stop()
        assert agent.left.is_set()
        assert 7 <= loop.time() - begun < 8  # on the test's own clock
        with pytest.raises(CallError):
            await call


async def test_an_operation_can_stop_its_own_node() -> None:
    class Stopping(Probe):
        @operation
        async def stop_node(self) -> None:
            await Fabric.current().stop()

    async with sentinel() as hub, fabric(hub) as client:
        node = fabric(hub, stop_grace_seconds=60)
        await node.__aenter__()
        await node.serve(Stopping(), ADDRESS)
        with pytest.raises(CallError):
            await Stopping.remote(ADDRESS, fabric=client).stop_node()


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_grace_period_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(Exception, match="FAME_STOP_GRACE_SECONDS"):
        Settings(stop_grace_seconds=seconds)


async def test_a_place_that_is_lent_is_taken_back_even_if_none_is_free() -> None:
    places = Places(2)
    place = Place(places, "a")
    assert place.take_if_free()
    with place:
        assert places.has_room("b")
        places.take("b")
    assert places.taken == 2
    place.leave()
    assert places.taken == 1


async def test_one_that_gives_up_waiting_leaves_its_turn_to_the_next() -> None:
    places = Places(1)
    places.take("a")
    first, second = (asyncio.create_task(places.wait("b")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    places.leave("a")
    await second
    assert places.taken == 1


async def test_many_wrong_arguments_are_refused_in_a_short_sentence() -> None:
    class Lists(Probe):
        @operation
        async def take(self, numbers: list[int]) -> int:
            return len(numbers)

    async with sentinel() as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(Lists(), ADDRESS)
        with pytest.raises(InvalidArguments, match="80000 parts of it do not fit") as caught:
            await Agent.remote(ADDRESS, fabric=client).take([""] * 80_000)  # type: ignore[attr-defined]
        assert len(str(caught.value)) < 200
        assert caught.value.data[0]["loc"] == ["numbers"]


@pytest.mark.parametrize("flows", [0, 1, 2000])
@pytest.mark.parametrize("policy", ["at-most-once", "at-least-once"])
async def test_a_flood_of_plain_messages_holds_up_neither_messages_nor_calls_of_others(
    policy: str,
    flows: int,
) -> None:
    agent = Slow()
    async with (
        sentinel(node_id="hub") as hub,
        fabric(hub, max_running_calls=8, delivery_profile=policy) as node,
        fabric(hub) as honest,
        raw_child(hub) as child,
    ):
        await node.serve(agent, ADDRESS)
        for number in range(2000):
            fields: dict[str, Any] = {"to": ADDRESS}
            if flows:
                fields["flowId"] = f"f{number % flows}"
            if policy == "at-least-once":
                fields |= {"replyTo": f"__sys__@{hub.path}/raw", "corrId": "c", "rtype": 1}
            await say(child, f"m{number}", {"type": "Data", "payload": "flood"}, **fields)
        await eventually(lambda: agent.stuck == 1)
        for number in range(100):
            await honest.send_message(ADDRESS, number)
            assert await Slow.remote(ADDRESS, fabric=honest).echo(number) == number
        await eventually(lambda: agent.messages == list(range(100)))
        agent.gate.set()


@pytest.mark.parametrize("reply_to", [{}, {"replyTo": "__sys__@/hub/raw", "corrId": "c"}])
async def test_plain_messages_beyond_a_sources_share_are_refused(
    reply_to: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_WAITING", 20)
    agent = Slow()
    async with (
        sentinel(node_id="hub") as hub,
        fabric(hub, max_running_calls=8) as node,
        raw_child(hub) as child,
    ):
        await node.serve(agent, ADDRESS)
        for number in range(40):
            frame = {"type": "Data", "payload": "flood"}
            await say(child, f"m{number}", frame, to=ADDRESS, flowId=f"f{number}", **reply_to)
        if reply_to:
            nack = json.loads(await child.recv())["frame"]
            assert (nack["code"], nack["ok"]) == ("BUSY", False)
            assert "10 messages wait on the agent's node" in nack["reason"]
        await eventually(lambda: agent.stuck == 1)
        agent.gate.set()
        assert await Slow.remote(ADDRESS, fabric=node).echo(1) == 1
        await eventually(lambda: len(agent.messages) == 11)


async def test_children_with_many_waiting_flows_leave_room_for_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow, "FORGET_ABOVE", 50)
    async with (
        sentinel(node_id="hub") as hub,
        raw_child(hub, "deaf") as deaf,
        raw_child(hub, "loud") as loud,
        raw_child(hub, "louder") as louder,
        fabric(hub) as honest,
    ):
        await say(deaf, "2", {"type": "AddressBind", "address": ADDRESS}, corrId="b")
        await deaf.recv()
        for number in range(33 * 40):
            for each in (loud, louder):
                flow_id = f"{id(each)}-{number // 33}"
                await say(each, "m", {"type": "Data"}, to=ADDRESS, flowId=flow_id)
        await honest.send_message(ADDRESS, "honest")
        async with asyncio.timeout(20):
            while json.loads(await deaf.recv())["frame"].get("payload") != "honest":
                pass
