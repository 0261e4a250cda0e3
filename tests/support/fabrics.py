"""What the tests of messaging share: a sentinel, agents and clients in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from strongroom import BaseAgent, Fabric, Sentinel, Settings, operation

ADDRESS = "test@fame.fabric"


def url(sentinel: Sentinel) -> str:
    return f"ws://127.0.0.1:{sentinel.port}/fame/v1/attach/ws/downstream"


def sentinel(**settings: Any) -> Sentinel:
    return Sentinel(Settings(**{"listener_port": 0, "stop_grace_seconds": 0, **settings}))


def fabric(hub: Sentinel, **settings: Any) -> Fabric:
    """A fabric that waits for no running call when it stops, unless `settings` says so."""
    return Fabric(Settings(admission_url=url(hub), **{"stop_grace_seconds": 0, **settings}))


@asynccontextmanager
async def sentinel_agent_and_client(
    agent: BaseAgent[Any], address: str = ADDRESS
) -> AsyncIterator[Sentinel]:
    """A sentinel, `agent` on its own node, and a client on the current fabric."""
    async with sentinel() as hub, fabric(hub) as node:
        await node.serve(agent, address)
        async with fabric(hub):
            yield hub


async def eventually(condition: Callable[[], object], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


class Probe(BaseAgent[Any]):
    """An agent with an operation for each outcome of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.yielded = 0
        self.messages: list[Any] = []

    @operation
    async def echo(self, value: Any = None) -> Any:
        return value

    @operation
    async def add(self, a: int, b: int = 0) -> int:
        return a + b

    @operation(name="renamed")
    async def under_another_name(self) -> str:
        return "renamed"

    @operation
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @operation
    async def hang(self) -> None:
        self.entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.left.set()

    @operation(streaming=True)
    async def count(self, number: int) -> AsyncIterator[int]:
        try:
            for each in range(number):
                self.yielded = each + 1
                yield each
        finally:
            self.left.set()

    @operation(streaming=True)
    async def fail_after(self, number: int) -> AsyncIterator[int]:
        for each in range(number):
            yield each
        raise ValueError("enough")

    @operation(streaming=True)
    async def yield_none(self) -> AsyncIterator[int | None]:
        yield 1
        yield None

    async def on_message(self, message: Any) -> None:
        self.messages.append(message)
