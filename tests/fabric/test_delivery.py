"""At-least-once delivery: stored before it is acknowledged, handled again, answered once."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from strongroom import Agent, Fabric, Settings, open_provider, operation
from strongroom.errors import (
    CallInterrupted,
    CallTimeout,
    NoRoute,
    OperationFailed,
    SettingsError,
)
from strongroom.messaging.stored import ReceivedMessage
from strongroom.settings import StorageSettings
from strongroom.storage import KeyValueStore
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel, url
from support.peer import raw_child, say
from support.processes import Program, attach_url, free_port, running
from support.proxy import proxied

AT_LEAST_ONCE: dict[str, Any] = {"delivery_profile": "at-least-once"}


class Counting(Probe):
    runs = 0

    @operation
    async def run(self) -> int:
        self.runs += 1
        return self.runs


async def test_calls_succeed_and_fail_as_with_at_most_once() -> None:
    async with sentinel() as hub, fabric(hub, **AT_LEAST_ONCE) as node:
        await node.serve(Probe(), ADDRESS)
        async with fabric(hub, **AT_LEAST_ONCE) as client:
            remote = Agent.remote_by_address(ADDRESS)
            assert await remote.add(1, 2) == 3
            assert [item async for item in remote.count(100)] == list(range(100))
            with pytest.raises(OperationFailed):
                await remote.fail("not today")
            with pytest.raises(NoRoute):
                await Agent.remote_by_address("nobody@fame.fabric").echo()
            with pytest.raises(CallTimeout):
                await remote.hang(_timeout=0.1)
            delivery: Any = client._running.delivery
            assert not delivery._unsettled
            await eventually(lambda: not delivery._writes._tasks)
            assert await (await client.storage.open("__delivery_outbox")).count() == 0


async def test_a_repeated_id_is_answered_from_the_record_of_the_first_answer() -> None:
    agent = Counting()
    async with sentinel() as hub, fabric(hub, **AT_LEAST_ONCE) as node, raw_child(hub) as link:
        await node.serve(agent, ADDRESS)
        payload = {"jsonrpc": "2.0", "id": "c", "method": "run", "params": {}}
        request = {
            "to": ADDRESS,
            "replyTo": f"__rpc__x@/{hub.id}/raw",
            "corrId": "c",
            "flowId": "f",
            "rtype": 3,
        }
        for _ in range(3):
            await say(link, "the-same-id", {"type": "Data", "payload": payload}, **request)
            ack = json.loads(await link.recv())["frame"]
            assert (ack["type"], ack["ok"], ack["refId"]) == ("DeliveryAck", True, "the-same-id")
            assert json.loads(await link.recv())["frame"]["payload"]["result"] == 1
        assert agent.runs == 1


async def test_a_cut_link_loses_no_call() -> None:
    agent = Counting()
    async with sentinel() as hub, fabric(hub, **AT_LEAST_ONCE) as node, proxied(hub.port) as proxy:
        await node.serve(agent, ADDRESS)
        async with Fabric(Settings(admission_url=attach_url(proxy.port), **AT_LEAST_ONCE)):
            remote = Agent.remote_by_address(ADDRESS)
            calls = [asyncio.create_task(remote.run()) for _ in range(50)]
            await asyncio.sleep(0.01)
            proxy.cut()
            async with asyncio.timeout(10):
                assert sorted(await asyncio.gather(*calls)) == list(range(1, 51))
            assert agent.runs == 50


async def test_a_message_for_an_agent_that_is_away_arrives_when_it_returns() -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub, **AT_LEAST_ONCE) as client:
        async with fabric(hub, node_id="agent", **AT_LEAST_ONCE) as node:
            await node.serve(Probe(), ADDRESS)
        sending = asyncio.create_task(client.send_message(ADDRESS, "hello"))
        await asyncio.sleep(0.2)
        assert not sending.done()
        async with fabric(hub, node_id="agent", **AT_LEAST_ONCE) as node:
            await node.serve(agent, ADDRESS)
            await eventually(lambda: agent.messages == ["hello"])
            delivery: Any = client._running.delivery
            ack = await sending
            assert ack is not None
            assert ack.ok
            await eventually(lambda: not delivery._unsettled)


async def test_what_was_sent_before_a_restart_is_sent_after_it(tmp_path: Path) -> None:
    kept = StorageSettings(profile="sqlite", directory=tmp_path)
    agent = Probe()
    async with sentinel() as hub:
        async with fabric(hub, node_id="agent") as node:
            await node.serve(Probe(), ADDRESS)
        async with fabric(hub, storage=kept, **AT_LEAST_ONCE) as client:
            sending = asyncio.create_task(client.send_message(ADDRESS, "hello"))
            delivery: Any = client._running.delivery
            await eventually(lambda: any(each.task for each in delivery._unsettled.values()))
        with pytest.raises(CallInterrupted, match="sent again when it starts"):
            await sending
        async with fabric(hub, node_id="agent") as node:
            await node.serve(agent, ADDRESS)
            async with fabric(hub, storage=kept, **AT_LEAST_ONCE):
                await eventually(lambda: agent.messages == ["hello"])


async def test_a_call_outlives_its_agents_crash(tmp_path: Path) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()
    kept = {
        "FAME_DIRECT_ADMISSION_URL": attach_url(port),
        "FAME_STORAGE_PROFILE": "sqlite",
        "FAME_STORAGE_DB_DIRECTORY": tmp_path / "data",
        "FAME_DELIVERY_PROFILE": "at-least-once",
    }
    async with running(hub, agent):
        await hub.start_and_wait(FAME_LISTENER_PORT=port)
        await agent.start_and_wait(**kept)
        async with Fabric(Settings(admission_url=attach_url(port), **AT_LEAST_ONCE)):
            call = asyncio.create_task(
                Agent.remote_by_address("test@fame.fabric").increase_slowly(0.5)
            )
            await asyncio.sleep(0.25)
            await agent.stop(signal.SIGKILL)
            await agent.start_and_wait(**kept)
            async with asyncio.timeout(5):
                assert await call == 1


@pytest.mark.slow
async def test_a_hundred_calls_outlive_kills_of_their_agent_and_their_sentinel(
    tmp_path: Path,
) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()

    def kept(name: str) -> dict[str, object]:
        return {
            "FAME_STORAGE_PROFILE": "sqlite",
            "FAME_STORAGE_DB_DIRECTORY": tmp_path / name,
            "FAME_DELIVERY_PROFILE": "at-least-once",
            "FAME_DELIVERY_ATTEMPTS": 20,
        }

    hub_settings = {**kept("hub"), "FAME_LISTENER_PORT": port}
    agent_settings = {**kept("agent"), "FAME_DIRECT_ADMISSION_URL": attach_url(port)}
    async with running(hub, agent):
        await hub.start_and_wait(**hub_settings)
        await agent.start_and_wait(**agent_settings)
        async with Fabric(Settings(admission_url=attach_url(port), **AT_LEAST_ONCE)):
            remote = Agent.remote_by_address("test@fame.fabric", timeout=100)
            calls = [asyncio.create_task(remote.increase_slowly(n / 50)) for n in range(100)]
            for program, settings in ((agent, agent_settings), (hub, hub_settings)) * 2:
                await asyncio.wait(calls, timeout=0.3)
                await program.stop(signal.SIGKILL)
                await program.start_and_wait(**settings)
            answers = await asyncio.gather(*calls)
        assert len(set(answers)) == 100
        assert max(answers) >= 100


async def test_an_unknown_profile_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="FAME_DELIVERY_PROFILE"):
        await Fabric(Settings(delivery_profile="twice")).start()


async def test_an_agent_that_has_answered_starts_again_within_ten_minutes() -> None:
    storage = await open_provider(StorageSettings())
    async with sentinel() as hub, fabric(hub, **AT_LEAST_ONCE) as client:
        settings = Settings(admission_url=url(hub), delivery_profile="at-least-once")
        remote = Probe.remote(ADDRESS, fabric=client)
        for _ in range(2):
            async with Fabric(settings, storage=storage) as node:
                await node.serve(Probe(), ADDRESS)
                assert await remote.echo("hello") == "hello"


@pytest.mark.parametrize("namespace", ["__delivery_inbox", "__delivery_outbox"])
async def test_a_stored_message_that_cannot_be_read_does_not_keep_a_node_from_starting(
    namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = await open_provider(StorageSettings())
    for text in ("", "{", '{"id":"x","frame":{"type":"Data"}}', '{"frame":{"type":"Strange"}}'):
        store = KeyValueStore(await storage.open(namespace), ReceivedMessage, namespace)
        await store.set(f"key {text}", ReceivedMessage(envelope=text))
    settings = Settings(delivery_profile="at-least-once")
    async with Fabric(settings, storage=storage) as node:
        await node.serve(Probe(), ADDRESS)
        assert await Probe.remote(ADDRESS, fabric=node).echo("hello") == "hello"
    assert "cannot be read" in caplog.text
