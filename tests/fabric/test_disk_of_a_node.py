"""At least once on a disk that refuses for a while: nothing is lost, and nothing runs again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from strongroom import Fabric, Sentinel, Settings, operation
from strongroom.messaging.stored import DEAD_LETTERS, INBOX, OUTBOX
from strongroom.nodes import inbox
from strongroom.nodes.inbox import Inbox
from support.crashes import Disk, Points
from support.fabrics import ADDRESS, Probe, fabric, sentinel, url
from support.links import MemoryNetwork, in_virtual_time, network  # noqa: F401 - a fixture

TWICE: dict[str, Any] = {"delivery_profile": "at-least-once", "delivery_pause_seconds": 0.1}


class Full(Probe):
    """Its disk refuses while it works."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk
        self.runs = 0

    @operation
    async def fill(self) -> int:
        self.runs += 1
        self.disk.refuses = True
        return self.runs

    async def on_message(self, message: Any) -> None:
        self.runs += 1
        self.disk.refuses = True
        if message == "raise":
            raise ValueError(message)


def settings_for(hub: Sentinel, **settings: Any) -> Settings:
    return Settings(**{"admission_url": url(hub), "stop_grace_seconds": 0, **TWICE, **settings})


@asynccontextmanager
async def served(hub: Sentinel, agent: Full, **settings: Any) -> AsyncIterator[Fabric]:
    async with Fabric(settings_for(hub, **settings), storage=agent.disk) as node:
        await node.serve(agent, ADDRESS)
        yield node


async def records(disk: Disk, namespace: str) -> int:
    return await (await disk.kept.open(namespace)).count()


@pytest.mark.parametrize("seconds", [0.0, 2.5])
@pytest.mark.parametrize("kind", ["call", "message"])
@in_virtual_time
async def test_what_waits_for_the_disk_is_stored_while_the_node_stops(
    network: MemoryNetwork,  # noqa: F811
    kind: str,
    seconds: float,
) -> None:
    agent, loop = Full(Disk(Points())), asyncio.get_running_loop()
    async with sentinel() as hub, fabric(hub, **TWICE) as client:
        async with served(hub, agent, stop_grace_seconds=3 if seconds else 0):
            if kind == "call":
                assert await Full.remote(ADDRESS, fabric=client).fill() == 1
            else:
                await client.send_message(ADDRESS, "hello")
                await asyncio.sleep(0.1)
            loop.call_later(seconds, setattr, agent.disk, "refuses", False)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        async with served(hub, agent):
            await asyncio.sleep(100)
        assert agent.runs == 1


@in_virtual_time
async def test_a_message_is_set_aside_when_the_disk_accepts_it_again(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent = Full(Disk(Points()))
    async with sentinel() as hub, fabric(hub, **TWICE) as client:
        async with served(hub, agent, delivery_attempts=1):
            await client.send_message(ADDRESS, "raise")
            await asyncio.sleep(10)
            assert await records(agent.disk, DEAD_LETTERS) == 0
            agent.disk.refuses = False
            await asyncio.sleep(10)
            assert await records(agent.disk, DEAD_LETTERS) == 1
        assert agent.runs == 1


@in_virtual_time
async def test_a_settled_message_is_not_sent_again_after_a_disk_has_refused(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent, disk = Full(Disk(Points())), Disk(Points())
    async with sentinel() as hub, served(hub, agent):
        async with Fabric(settings_for(hub), storage=disk) as client:
            call = asyncio.ensure_future(Full.remote(ADDRESS, fabric=client).hang(_timeout=5))
            await agent.entered.wait()
            disk.refuses = True
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await call
            await asyncio.sleep(10)
            assert await records(disk, OUTBOX) == 1
            disk.refuses = False
        assert await records(disk, OUTBOX) == 0


@in_virtual_time
async def test_an_answer_leaves_even_if_an_older_one_cannot_be_deleted(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "MAX_ANSWERS", 1)
    agent = Full(Disk(Points()))
    async with sentinel() as hub, fabric(hub, **TWICE) as client, served(hub, agent):
        remote = Full.remote(ADDRESS, fabric=client)
        assert await remote.echo(1) == 1
        finish = Inbox._finish

        def refuse_then_finish(self: Inbox, key: str) -> Any:
            agent.disk.refuses = True
            return finish(self, key)

        monkeypatch.setattr(Inbox, "_finish", refuse_then_finish)
        assert await remote.echo(2, _timeout=5) == 2
        assert await records(agent.disk, INBOX) == 2
        agent.disk.refuses = False
        await asyncio.sleep(3)
        assert await records(agent.disk, INBOX) == 1
