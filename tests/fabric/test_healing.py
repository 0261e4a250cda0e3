"""Whatever breaks heals: links cut and stalled, and each party killed and started again."""

import asyncio
import gc
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from strongroom import Agent, Fabric, Settings
from strongroom.errors import CallError, CallInterrupted, CallTimeout, FabricError, NoRoute
from strongroom.messaging import link
from strongroom.messaging.rpc import Target
from strongroom.nodes import uplink
from strongroom.nodes.sentinel import Sentinel
from strongroom.settings import StorageSettings
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel
from support.files import descriptors
from support.processes import Program, attach_url, free_port, running
from support.proxy import proxied


async def answer_again(remote: Probe, within: float = 2.0) -> float:
    """Seconds until a call succeeds."""
    begun = time.monotonic()
    async with asyncio.timeout(within):
        while True:
            try:
                await remote.echo(1)
            except FabricError:
                await asyncio.sleep(0.02)
            else:
                return time.monotonic() - begun


async def test_a_cut_link_of_the_caller_interrupts_calls_and_heals() -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub) as node, proxied(hub.port) as proxy:
        await node.serve(agent, ADDRESS)
        async with Fabric(Settings(admission_url=attach_url(proxy.port))) as client:
            remote = Probe.remote(ADDRESS)
            path = client.path
            call = asyncio.create_task(Agent.remote_by_address(ADDRESS).hang())
            await agent.entered.wait()
            proxy.cut()
            with pytest.raises(CallInterrupted):
                await call
            assert await remote.echo("healed") == "healed"  # waits for the link, in its deadline
            assert client.path == path


async def test_a_cut_link_of_the_agent_interrupts_calls_and_heals_without_rebinding() -> None:
    agent = Probe()
    async with sentinel() as hub, proxied(hub.port) as proxy:
        node = Fabric(Settings(admission_url=attach_url(proxy.port)))
        async with node, fabric(hub) as client:
            await node.serve(agent, ADDRESS)
            remote = Probe.remote(ADDRESS, fabric=client)
            call = asyncio.create_task(Agent.remote_by_address(ADDRESS).hang())
            local = asyncio.create_task(Probe.remote(ADDRESS, fabric=node).echo("local"))
            await agent.entered.wait()
            proxy.cut()
            with pytest.raises(CallInterrupted):
                await call
            assert await local == "local"
            await answer_again(remote)


async def test_a_link_cut_within_a_message_heals() -> None:
    async with sentinel() as hub, fabric(hub) as node, proxied(hub.port) as proxy:
        await node.serve(Probe(), ADDRESS)
        async with Fabric(Settings(admission_url=attach_url(proxy.port))):
            remote = Agent.remote_by_address(ADDRESS)
            await remote.echo("whole")
            proxy.cut_after = 5000
            with pytest.raises(CallInterrupted):
                await remote.echo("x" * 10_000)
            proxy.cut_after = None
            await answer_again(remote)


async def test_a_stalled_link_delays_and_loses_nothing() -> None:
    async with sentinel() as hub, fabric(hub) as node, proxied(hub.port) as proxy:
        await node.serve(Probe(), ADDRESS)
        async with Fabric(Settings(admission_url=attach_url(proxy.port))):
            remote = Agent.remote_by_address(ADDRESS)
            proxy.flowing.clear()
            call = asyncio.create_task(remote.echo("late"))
            with pytest.raises(CallTimeout):
                await remote.echo("too late", _timeout=0.2)
            proxy.flowing.set()
            assert await call == "late"


async def test_a_silent_link_is_dropped_and_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(uplink, "HEARTBEAT_SECONDS", 0.2)
    async with sentinel() as hub, fabric(hub) as node, proxied(hub.port) as proxy:
        await node.serve(Probe(), ADDRESS)
        async with Fabric(Settings(admission_url=attach_url(proxy.port))) as client:
            await asyncio.sleep(1.2)  # heartbeats keep it
            assert client.describe()["attached"]
            proxy.flowing.clear()
            await eventually(lambda: not client.describe()["attached"])
            proxy.flowing.set()
            await answer_again(Agent.remote_by_address(ADDRESS))


async def test_a_new_epoch_makes_callers_wait_for_names_and_the_same_one_does_not() -> None:
    async with sentinel() as hub:
        port, node_id = hub.port, hub.id
        async with fabric(hub) as node, fabric(hub):
            await node.serve(Probe(), ADDRESS)
            remote = Agent.remote_by_address(ADDRESS)
            await hub.stop()
            async with Sentinel(Settings(listener_port=port, node_id=node_id)):
                # Calls made while names are coming back wait for them.
                results = await asyncio.gather(*(remote.echo(n) for n in range(20)))
                assert results == list(range(20))
                begun = time.monotonic()
                with pytest.raises(CallError):
                    await Agent.remote_by_address("nobody@fame.fabric").echo(_timeout=0.5)
                assert time.monotonic() - begun < 2


async def test_clock_jumps_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sentinel() as hub, fabric(hub) as node, fabric(hub):
        await node.serve(Probe(), ADDRESS)
        remote = Agent.remote_by_address(ADDRESS)
        for jump in (10**9, -(10**9)):
            monkeypatch.setattr(time, "time", lambda jump=jump: time.time_ns() / 1e9 + jump)
            assert await remote.echo(jump) == jump


async def test_calls_to_a_node_that_is_just_returning_wait_for_its_names(tmp_path: Path) -> None:
    kept = StorageSettings(profile="sqlite", directory=tmp_path)

    class Slow(Probe):
        async def start(self) -> None:
            calls.append(asyncio.create_task(client.calls.call(target, "echo", b'{"value":1}')))
            await asyncio.sleep(0.2)

    calls: list[asyncio.Task[Any]] = []
    target = Target(ADDRESS)
    async with sentinel() as hub, fabric(hub) as client:
        async with fabric(hub, storage=kept) as node:
            await node.serve(Probe(), ADDRESS)
            await node.serve(Probe(), "gone@fame.fabric")
        async with fabric(hub, storage=kept) as node:
            gone = asyncio.create_task(Probe.remote("gone@fame.fabric", fabric=client).echo(1))
            await node.serve(Slow(), ADDRESS)
            assert bytes(await calls[0]) == b"1"
            node._refuse_held()
            with pytest.raises(NoRoute):
                await gone


async def test_links_cut_again_and_again_leave_no_descriptors_and_tasks() -> None:
    async with sentinel() as hub, fabric(hub) as node, proxied(hub.port) as proxy:
        await node.serve(Probe(), ADDRESS)
        async with Fabric(Settings(admission_url=attach_url(proxy.port))):
            remote = Agent.remote_by_address(ADDRESS)
            await remote.echo(0)
            open_before, tasks_before = descriptors(), len(asyncio.all_tasks())
            for _ in range(20):
                proxy.cut()
                await asyncio.sleep(0)
                await answer_again(remote)
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before + 2)
            gc.collect()
            assert descriptors() <= open_before + 4


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_every_order_of_kills_and_restarts_heals_within_two_seconds(tmp_path: Path) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()
    hub_settings = {"FAME_LISTENER_PORT": port, "FAME_NODE_ID": "hub"}
    agent_settings = {"FAME_DIRECT_ADMISSION_URL": attach_url(port), "FAME_NODE_ID": "agent"}
    orders = [
        (first, second, number)
        for first in (hub, agent)
        for second in (hub, agent)
        for number in (signal.SIGTERM, signal.SIGKILL)
    ]
    random.Random(1).shuffle(orders)
    async with running(hub, agent):
        await hub.start_and_wait(**hub_settings)
        await agent.start_and_wait(**agent_settings)
        async with Fabric(Settings(admission_url=attach_url(port))):
            remote = Agent.remote_by_address("test@fame.fabric")
            for first, second, number in orders:
                downs = list(dict.fromkeys((first, second)))
                for program in downs:
                    await program.stop(number)
                for program in sorted(downs, key=lambda each: each is agent):
                    await program.start_and_wait(
                        **(hub_settings if program is hub else agent_settings)
                    )
                assert await answer_again(remote) < 2
