"""Messages and raw calls: what handlers may answer, what is logged, and which trace they carry."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from strongroom import Agent, BaseAgent, Fabric, Settings, operation
from strongroom.compat.naylence.fame.core import (
    DataFrame,
    FameMessageResponse,
    create_fame_envelope,
)
from strongroom.errors import CallTimeout, InvalidArguments, NoRoute
from strongroom.messaging.places import own_place
from support.fabrics import ADDRESS, Probe, eventually, sentinel_agent_and_client


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
