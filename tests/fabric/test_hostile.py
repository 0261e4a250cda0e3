"""Honest callers beside a hostile child: each of their calls has its answer, and all stay attached.

What once failed is kept in `tests/data/hostile`, one input in each file, and played again.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from strongroom import Agent, Fabric, Sentinel
from strongroom.messaging.flow import Channel
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel
from support.hostile import HostileChild, flood, play
from support.peer import masked

KEPT = sorted((Path(__file__).parents[1] / "data" / "hostile").iterdir())
HONEST_CALLERS = 4
MOST_BYTES = 2**20
"""Bytes of a flood that a sentinel handles between a call and its answer, at most."""
STEPS = 12
"""Steps on one link; most links are closed before they are over."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Honest:
    """Callers that call without a pause, and know whether all was well."""

    def __init__(self, clients: list[Fabric]) -> None:
        self.calls = 0
        self._is_over = False
        self._tasks = [asyncio.create_task(self._call(each)) for each in clients]

    async def _call(self, client: Fabric) -> None:
        remote = Probe.remote(ADDRESS, fabric=client)
        while not self._is_over:
            assert await remote.echo(self.calls) is not None
            assert [each async for each in remote.count(3)] == [0, 1, 2]
            self.calls += 1

    async def finish(self) -> None:
        self._is_over = True
        async with asyncio.timeout(10):
            await asyncio.gather(*self._tasks)


@asynccontextmanager
async def honest_callers() -> AsyncIterator[tuple[Sentinel, Honest]]:
    """A sentinel, an agent, and callers whose calls must all succeed, on links that all last."""
    async with sentinel(node_id="hub") as hub, fabric(hub) as node:
        await node.serve(Probe(), ADDRESS)
        clients = [fabric(hub) for _ in range(HONEST_CALLERS)]
        for client in clients:
            await client.start()
        links = {child.link for child in hub.children.links}
        honest = Honest(clients)
        try:
            yield hub, honest
            await honest.finish()
            assert links <= {child.link for child in hub.children.links}
            assert await Agent.remote(ADDRESS, fabric=clients[0]).echo(1) == 1  # type: ignore[attr-defined]
        finally:
            for client in clients:
                await client.stop()


def hostile(hub: Sentinel, seed: int) -> HostileChild:
    nodes = [child.system_id for child in hub.children.links]
    targets = [ADDRESS, *(f"__sys__@{hub.path}/{node}" for node in nodes)]
    return HostileChild(seed, hub.path, targets)


async def test_a_few_hundred_frames_of_a_hostile_child_harm_nobody() -> None:
    async with honest_callers() as (hub, honest):
        for seed in range(20):
            steps = list(hostile(hub, seed).steps(STEPS))
            await play(hub, steps, reads=seed % 2 == 0)
        assert honest.calls


async def test_between_a_call_and_its_answer_little_of_a_flood_is_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handled, between = [0], []
    on_message = Channel.on_message

    def counting(channel: Channel, data: bytes) -> None:
        if channel.link.name == "hostile":
            handled[0] += len(data)
        on_message(channel, data)

    monkeypatch.setattr(Channel, "on_message", counting)
    async with sentinel(node_id="hub") as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(Probe(), ADDRESS)
        remote = Probe.remote(ADDRESS, fabric=client)
        message = {"id": "m", "to": ADDRESS, "frame": {"type": "Data", "payload": 1}}
        flooding = asyncio.create_task(flood(hub, masked(2, json.dumps(message).encode()) * 1000))
        await eventually(lambda: handled[0] > 0)
        for _ in range(100):
            before = handled[0]
            assert await remote.echo(1) == 1
            between.append(handled[0] - before)
        flooding.cancel()
    assert sum(between) > 100 * len(message)  # it was a flood
    assert max(between) < MOST_BYTES, sorted(between)


@pytest.mark.slow
async def test_a_minute_with_a_hostile_child_harms_nobody() -> None:
    first = int(os.environ.get("HOSTILE_SEED", time.time_ns() % 10**9))
    print(f"HOSTILE_SEED={first}")  # pytest shows it if this fails
    async with honest_callers() as (hub, honest):
        end = time.monotonic() + 60
        for seed in range(first, first + 10**6):
            steps = list(hostile(hub, seed).steps(STEPS))
            await play(hub, steps, reads=seed % 2 == 0)
            if time.monotonic() > end:
                break
        assert honest.calls
        held = hub.describe()["held"]
        assert held["waiting_bytes"] < 64 * 1024 * 1024


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name)
async def test_what_once_did_harm_does_none(kept: Path) -> None:
    async with honest_callers() as (hub, _):
        await play(hub, [kept.read_bytes()], reads=True)
