"""Streams whose reader is gone end soon, and each reader gets all that was sent before an error."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from strongroom import Agent, operation
from strongroom.errors import CallError, CallInterrupted, InvalidArguments, MessageTooLarge
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel
from support.links import MemoryNetwork, in_virtual_time, network  # noqa: F401 - a fixture
from support.peer import raw_child, say

SOON_SECONDS = 10


class Endless(Probe):
    """Streams that send one item and then wait forever, and counts those that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0

    @operation(streaming=True)
    async def subscribe(self) -> AsyncIterator[int]:
        self.open += 1
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            self.open -= 1

    @operation(streaming=True)
    async def numbers(self) -> AsyncIterator[int]:
        self.open += 1
        try:
            for number in range(10**9):
                yield number
                await asyncio.sleep(0.5)
        finally:
            self.open -= 1

    @operation(streaming=True)
    async def grow(self) -> AsyncIterator[str]:
        for number in range(100):
            yield str(number)
        yield "x" * 300_000


@pytest.mark.parametrize("operation", ["subscribe", "numbers"])
@pytest.mark.parametrize("cut", ["agent", "client", "sentinel"])
@in_virtual_time
async def test_a_stream_ends_soon_after_a_link_was_cut(
    network: MemoryNetwork,  # noqa: F811
    cut: str,
    operation: str,
) -> None:
    agent = Endless()
    hub = sentinel(node_id="hub")
    await hub.start()
    port = hub.port
    async with fabric(hub, node_id="agent") as node, fabric(hub, node_id="client") as client:
        await node.serve(agent, ADDRESS)
        stream = getattr(Endless.remote(ADDRESS, fabric=client, timeout=60), operation)()
        assert await anext(stream) == 0
        if cut == "sentinel":
            await hub.stop()
            hub = sentinel(node_id="hub", listener_port=port)
            await hub.start()
        else:
            [link] = [each for each in network.links if each.name == cut]
            link.close()
        with pytest.raises(CallInterrupted):
            await anext(stream)
        await asyncio.sleep(SOON_SECONDS)
        assert agent.open == 0
    await hub.stop()


@in_virtual_time
async def test_a_stream_ends_soon_when_its_readers_process_is_gone(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent = Endless()
    async with sentinel() as hub, fabric(hub) as node, fabric(hub, node_id="client") as client:
        await node.serve(agent, ADDRESS)
        reader = network.raw_child(hub.port, "gone")
        reader.say({"type": "NodeAttach", "systemId": "gone"}, corrId="a")
        await reader.hear("NodeAttachAck")
        payload = {"jsonrpc": "2.0", "id": "c", "method": "subscribe", "params": {}}
        reply_to = f"__rpc__x@/{hub.id}/gone"
        for _ in range(3):  # repeated, it is still one stream for one reader
            reader.say(
                {"type": "Data", "payload": payload},
                to=ADDRESS,
                corrId="c",
                replyTo=reply_to,
                rtype=4,
            )
        await reader.hear("Data")
        await asyncio.sleep(SOON_SECONDS)
        assert agent.open == 1  # it was quiet, but is there
        reader.link.close()
        await asyncio.sleep(SOON_SECONDS)
        assert agent.open == 0
        assert await Endless.remote(ADDRESS, fabric=client).echo(1) == 1


@in_virtual_time
async def test_a_quiet_stream_stays_open_as_long_as_its_reader_waits(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent = Endless()
    async with sentinel() as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(agent, ADDRESS)
        for remote in (
            Endless.remote(ADDRESS, fabric=client, timeout=3600),
            Endless.remote(ADDRESS, fabric=node, timeout=3600),  # on the agent's own node
        ):
            stream: Any = remote.subscribe()
            await anext(stream)
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(600)
            assert (agent.open, waiting.done()) == (1, False)
            waiting.cancel()
            await asyncio.sleep(1)
            assert agent.open == 0


@in_virtual_time
async def test_a_reader_that_leaves_while_its_link_is_down_ends_the_stream(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent = Endless()
    async with sentinel() as hub, fabric(hub) as node, fabric(hub, node_id="client") as client:
        await node.serve(agent, ADDRESS)
        stream: Any = Endless.remote(ADDRESS, fabric=client, timeout=60).subscribe()
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        [link] = [each for each in network.links if each.name == "client"]
        link.close()
        reading.cancel()
        await asyncio.sleep(SOON_SECONDS)
        assert agent.open == 0


async def test_all_items_arrive_before_the_error_that_ends_a_stream() -> None:
    async with sentinel() as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(Endless(), ADDRESS)
        remote = Endless.remote(ADDRESS, fabric=client)
        for stream, number, kind in (
            (remote.fail_after(100), 100, CallError),
            (remote.grow(), 100, MessageTooLarge),
        ):
            items: list[Any] = []
            with pytest.raises(kind):
                async for item in stream:
                    items.append(item)
                    await asyncio.sleep(0)
            assert len(items) == number


async def test_an_item_that_nobody_reads_is_answered_with_the_end_of_its_stream() -> None:
    async with sentinel() as hub, raw_child(hub) as agent, fabric(hub) as client:
        await say(agent, "2", {"type": "AddressBind", "address": ADDRESS}, corrId="b")
        await agent.recv()
        payload = {"jsonrpc": "2.0", "id": "c", "result": 1}
        await say(
            agent,
            "item",
            {"type": "Data", "payload": payload},
            to=f"__rpc__x@{client.path}",
            corrId="c",
            flowId="c",
            replyTo=f"__sys__@/{hub.id}/raw",
        )
        closed = json.loads(await agent.recv())
        assert (closed["corrId"], closed["frame"]["code"]) == ("c", "STREAM_CLOSED")


@pytest.mark.parametrize(
    "message",
    [float("nan"), {"a": [float("inf")]}, b"bytes", {1: 2}, {"deep": b""}],
    ids=repr,
)
async def test_a_message_that_would_arrive_changed_is_refused_at_its_sender(message: Any) -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(agent, ADDRESS)
        with pytest.raises(InvalidArguments, match=ADDRESS):
            await client.send_message(ADDRESS, message)
        await client.send_message(ADDRESS, "fine")
        await eventually(lambda: agent.messages == ["fine"])


@pytest.mark.parametrize("profile", ["at-most-once", "at-least-once"])
async def test_a_message_too_large_or_too_deep_is_refused_at_its_sender(profile: str) -> None:
    deep: Any = None
    for _ in range(20_000):
        deep = [deep]
    async with sentinel() as hub, fabric(hub, delivery_profile=profile) as client:
        with pytest.raises(MessageTooLarge):
            await client.send_message(ADDRESS, "x" * 300_000)
        with pytest.raises(InvalidArguments, match="deep"):
            await client.send_message(ADDRESS, deep)
        with pytest.raises(InvalidArguments, match="deep"):
            await Agent.remote(ADDRESS, fabric=client).echo(deep)  # type: ignore[attr-defined]
