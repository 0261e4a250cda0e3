"""Messages and raw calls: what handlers may answer, what is logged, and which trace they carry."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from msgspec import Raw

from strongroom import Agent, BaseAgent, Fabric, Settings, operation
from strongroom.compat.naylence.fame.core import (
    DataFrame,
    FameMessageResponse,
    create_fame_envelope,
)
from strongroom.errors import CallTimeout, InvalidArguments, NoRoute
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, ReplyType
from strongroom.messaging.listeners import NodeEventListener
from strongroom.messaging.places import own_place
from support.fabrics import (
    ADDRESS,
    Probe,
    eventually,
    fabric,
    sentinel,
    sentinel_agent_and_client,
)


class Asking(BaseAgent):
    """Answers messages at another address, and says which traces it has seen."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.other = other
        self.traces: list[str | None] = []
        self.messages: list[Any] = []

    async def on_message(self, message: Any) -> Any:
        self.traces.append(own_place.get().trace_id)
        self.messages.append(message)
        if message == "answer me":
            frame = DataFrame(payload={"answer": 1})  # type: ignore[arg-type]
            return FameMessageResponse(create_fame_envelope(frame=frame, to=self.other))
        return None

    @operation
    async def pass_on(self) -> None:
        self.traces.append(own_place.get().trace_id)
        await Agent.remote_by_address(self.other).end()
        await Fabric.current().send_message(self.other, "told")

    @operation
    async def end(self) -> None:
        self.traces.append(own_place.get().trace_id)


async def test_a_message_may_be_answered_by_another() -> None:
    first, second = Asking("second@fame.fabric"), Asking("nobody@fame.fabric")
    async with Fabric(Settings()) as node:
        await node.serve(first, "first@fame.fabric")
        await node.serve(second, "second@fame.fabric")
        await node.send_message("first@fame.fabric", "answer me")
        await eventually(lambda: second.messages == [{"answer": 1}])


async def test_an_operation_s_own_calls_and_messages_carry_on_its_trace() -> None:
    first, second = Asking("second@fame.fabric"), Asking("nobody@fame.fabric")
    async with Fabric(Settings()) as node:
        await node.serve(first, "first@fame.fabric")
        await node.serve(second, "second@fame.fabric")
        remote = Agent.remote_by_address("first@fame.fabric")
        await asyncio.gather(*(remote.pass_on() for _ in range(3)))
        await eventually(lambda: len(second.messages) == 3)
        assert len(set(first.traces)) == 3
        assert sorted(second.traces, key=str) == sorted(first.traces * 2, key=str)


class Taking(BaseAgent):
    """Takes each message in a while that is the shorter, the later it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []
        self.waits = asyncio.Event()

    async def on_message(self, message: Any) -> None:
        if message == 0:
            await self.waits.wait()
        for _ in range(20 - message):
            await asyncio.sleep(0)
        self.taken.append(message)
        if message == 7:
            raise ValueError(message)

    @operation
    async def go_on(self) -> None:
        self.waits.set()

    @operation
    async def wait(self, number: int) -> None:
        await self.on_message(number)


async def test_at_least_once_a_message_returns_its_acknowledgement_or_says_why_there_is_none() -> (
    None
):
    agent = Probe()
    settings: dict[str, Any] = {"delivery_profile": "at-least-once"}
    async with (
        sentinel() as hub,
        fabric(hub, **settings) as node,
        fabric(hub, **settings) as client,
        fabric(hub) as careless,
    ):
        await node.serve(agent, ADDRESS)
        for sender in (client, node):
            ack = await sender.send_message(ADDRESS, "hello")
            assert ack is not None
            assert ack.ok
        assert await careless.send_message(ADDRESS, "hello") is None
        await eventually(lambda: agent.messages == ["hello"] * 3)
        with pytest.raises(NoRoute):
            await client.send_message("nobody@fame.fabric", "hello")


@pytest.mark.parametrize("profile", ["at-most-once", "at-least-once"])
async def test_messages_of_one_sender_are_handled_in_order_and_hold_up_nobody_else(
    profile: str,
) -> None:
    agent = Taking()
    settings: dict[str, Any] = {"delivery_profile": profile, "delivery_attempts": 1}
    async with (
        sentinel() as hub,
        fabric(hub, **settings) as node,
        fabric(hub, **settings) as first,
        fabric(hub, **settings) as second,
    ):
        await node.serve(agent, ADDRESS)
        await asyncio.gather(*(first.send_message(ADDRESS, number) for number in range(20)))
        await second.send_message(ADDRESS, 20)
        await eventually(lambda: agent.taken == [20])
        await Agent.remote_by_address(ADDRESS, fabric=first).go_on()
        await eventually(lambda: len(agent.taken) == 21)
        assert agent.taken == [20, *range(20)]


class Losing(NodeEventListener):
    """Loses the first acknowledgement that leaves a node."""

    def __init__(self) -> None:
        self.lost = 0

    async def on_forward_upstream(
        self, node: Any, envelope: Envelope, context: Any = None
    ) -> Envelope | None:
        if isinstance(envelope.frame, DeliveryAck) and not self.lost:
            self.lost += 1
            return None
        return envelope


class Doubling(NodeEventListener):
    """Writes a message that arrives twice."""

    async def on_deliver_local(
        self, node: Any, address: Any, envelope: Envelope, context: Any = None
    ) -> Envelope | None:
        if address == ADDRESS and isinstance(envelope.frame, Data):
            text = json.loads(bytes(envelope.frame.payload))
            envelope.frame = Data(payload=Raw(json.dumps(text * 2).encode()))
        return envelope


class Failing(NodeEventListener):
    """Raises at each message."""

    async def on_deliver_local(self, *_: Any) -> Envelope | None:
        raise RuntimeError

    async def on_forward_upstream(self, *_: Any) -> Envelope | None:
        raise RuntimeError


async def test_listeners_see_change_and_drop_messages_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("strongroom.nodes.at_least_once.RESEND_SECONDS", (0.05,))
    agent, losing = Probe(), Losing()
    settings: dict[str, Any] = {"delivery_profile": "at-least-once"}
    async with (
        sentinel() as hub,
        fabric(hub, **settings) as node,
        fabric(hub, **settings) as client,
    ):
        doubling = Doubling()
        for listener in (losing, Failing(), doubling, Doubling()):
            node.add_event_listener(listener)
        await node.serve(agent, ADDRESS)
        ack = await client.send_message(ADDRESS, "a")
        assert ack is not None
        assert ack.ok
        await eventually(lambda: agent.messages == ["aaaa"])
        assert losing.lost == 1
        node.remove_event_listener(doubling)
        await client.send_message(ADDRESS, "b")
        await eventually(lambda: agent.messages == ["aaaa", "bb"])


async def test_calls_whose_caller_has_restarted_run_at_the_same_time() -> None:
    agent = Taking()
    async with Fabric(Settings(delivery_profile="at-least-once")) as node:
        await node.serve(agent, ADDRESS)
        for number in range(2):
            params = {"kwargs": {"number": number}}
            request = {"jsonrpc": "2.0", "id": "1", "method": "wait", "params": params}
            frame = DataFrame(payload=Raw(json.dumps(request).encode()))
            again = {"reply_to": f"__rpc__ended@{node.path}", "rtype": ReplyType.ACK}
            await node.send(create_fame_envelope(frame=frame, to=ADDRESS, **again))
        await eventually(lambda: agent.taken == [1])
        agent.waits.set()
        await eventually(lambda: agent.taken == [1, 0])


async def test_a_message_that_nobody_handles_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "strongroom")
    async with sentinel_agent_and_client(BaseAgent()) as hub:
        await Fabric.current().send_message(ADDRESS, "hello")
        await eventually(lambda: "base_agent got a message and has no on_message()" in caplog.text)
        here = f"nobody@{hub.path}"
        await Fabric.current().send_message(here, "hello")
        await eventually(lambda: f"nothing is bound at {here}" in caplog.text)


async def test_operations_can_be_called_by_name() -> None:
    async with sentinel_agent_and_client(Probe()):
        fabric = Fabric.current()
        able = ["fame.capability.agent"]
        assert await fabric.invoke(ADDRESS, "add", {"a": 1, "b": 2}) == 3
        assert await fabric.invoke(ADDRESS, "echo") is None
        assert await fabric.invoke_by_capability(able, "add", {"a": 1}) == 1
        for items in (
            await fabric.invoke_stream(ADDRESS, "count", {"number": 3}),
            await fabric.invoke_by_capability_stream(able, "count", {"number": 3}),
        ):
            assert [item async for item in items] == [0, 1, 2]
        with pytest.raises(NoRoute):
            await fabric.invoke("nobody@fame.fabric", "add", {"a": 1})
        with pytest.raises(CallTimeout):
            await fabric.invoke(ADDRESS, "hang", timeout_ms=10)
        for value in (float("nan"), b"bytes"):
            with pytest.raises(InvalidArguments, match="echo"):
                await fabric.invoke(ADDRESS, "echo", {"value": value})
