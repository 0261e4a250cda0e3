"""Everything that waits ends in time. A clock that jumps ahead makes minutes pass at once."""

import asyncio
import json
from typing import Any

import pytest

from strongroom import (
    Agent,
    CallInterrupted,
    CallTimeout,
    Fabric,
    NoRoute,
    NotStarted,
    Sentinel,
    Settings,
    StorageSettings,
    StreamStalled,
    open_provider,
)
from strongroom.errors import AttachRefused
from strongroom.messaging import flow
from strongroom.messaging.rpc import Target
from strongroom.nodes.uplink import ROUTES_RETURN_SECONDS
from support.fabrics import ADDRESS, Probe, fabric, sentinel, url
from support.links import MemoryNetwork, RawPeer, in_virtual_time, network

__all__ = ["network"]

AT_LEAST_ONCE = {"delivery_profile": "at-least-once"}


def now() -> float:
    return asyncio.get_running_loop().time()


async def attached(network: MemoryNetwork, port: int, address: str | None = None) -> RawPeer:
    """A child that a test plays by hand, attached and perhaps bound to an address."""
    child = network.raw_child(port)
    child.say({"type": "NodeAttach", "systemId": "raw"}, corrId="a")
    assert (await child.hear("NodeAttachAck"))["frame"]["ok"]
    if address is not None:
        child.say({"type": "AddressBind", "address": address}, corrId="b")
        await child.hear("AddressBindAck")
    return child


class RawSentinel:
    """A sentinel that a test plays by hand."""

    def __init__(self) -> None:
        self.children: asyncio.Queue[RawPeer] = asyncio.Queue()

    def on_link(self, link: Any) -> None:
        self.children.put_nowait(RawPeer(link))

    def health(self) -> bytes:
        return b""

    def refusal(self, _headers: Any) -> None:
        return None

    def has_token(self, _token: str | None) -> bool:
        return True

    async def attach(self, epoch: str) -> RawPeer:
        child = await self.children.get()
        request = await child.hear("NodeAttach")
        path = f"/hub/{request['frame']['systemId']}"
        self.answer(child, request, assignedPath=path, targetSystemId="hub", routingEpoch=epoch)
        return child

    def answer(self, child: RawPeer, request: dict[str, Any], **fields: Any) -> None:
        kind = request["frame"]["type"] + "Ack"
        frame = {"type": kind, "ok": True, "refId": request["id"], **fields}
        child.say(frame, corrId=request["corrId"])

    async def acknowledge_bind(self, child: RawPeer) -> str:
        bind = await child.hear("AddressBind")
        self.answer(child, bind)
        self.answer(child, await child.hear("CapabilityAdvertise"))
        return str(bind["frame"]["address"])


@in_virtual_time
async def test_a_call_ends_at_its_deadline(network: MemoryNetwork) -> None:
    async with sentinel() as hub, fabric(hub) as node, fabric(hub):
        await node.serve(Probe(), ADDRESS)
        for timeout, expected in ((None, 30.0), (0.5, 0.5)):
            begun = now()
            with pytest.raises(CallTimeout):
                await Agent.remote_by_address(ADDRESS).hang(_timeout=timeout)
            assert now() - begun == pytest.approx(expected, abs=0.01)


@in_virtual_time
async def test_a_node_sends_a_heartbeat_every_15_seconds(network: MemoryNetwork) -> None:
    network.listeners[1] = hub = RawSentinel()
    async with asyncio.TaskGroup() as tasks:
        attaching = tasks.create_task(hub.attach("first"))
        async with Fabric(Settings(admission_url="ws://memory:1/fame/x")):
            child, begun = await attaching, now()
            for number in range(1, 4):
                await child.hear("NodeHeartbeat")
                assert now() - begun == pytest.approx(15.0 * number)


@in_virtual_time
async def test_a_node_binds_again_when_a_heartbeat_brings_a_new_epoch(
    network: MemoryNetwork,
) -> None:
    network.listeners[1] = hub = RawSentinel()
    async with asyncio.TaskGroup() as tasks:
        attaching = tasks.create_task(hub.attach("first"))
        async with Fabric(Settings(admission_url="ws://memory:1/fame/x")) as node:
            child = await attaching
            serving = tasks.create_task(node.serve(Probe(), ADDRESS))
            assert await hub.acknowledge_bind(child) == ADDRESS
            await serving
            hub.answer(child, await child.hear("NodeHeartbeat"), routingEpoch="second")
            assert await hub.acknowledge_bind(child) == ADDRESS
            for _ in range(3):  # and only once
                heartbeat = await child.messages.get()
                assert heartbeat["frame"]["type"] == "NodeHeartbeat"
                hub.answer(child, heartbeat, routingEpoch="second")


@in_virtual_time
async def test_a_reader_who_pauses_on_a_shared_flow_is_left_after_10_seconds(
    network: MemoryNetwork,
) -> None:
    async with sentinel() as hub, fabric(hub) as client:
        agent = await attached(network, hub.port, ADDRESS)
        stream = aiter(Probe.remote(ADDRESS, fabric=client).count(5))
        first = asyncio.ensure_future(anext(stream))
        request = await agent.hear("Data")
        for number in range(5):
            payload = {"jsonrpc": "2.0", "id": request["corrId"], "result": number}
            agent.say(
                {"type": "Data", "payload": payload},
                to=request["replyTo"],
                corrId=request["corrId"],
                flowId="shared",
            )
        assert await first == 0
        await asyncio.sleep(9.9)
        assert await anext(stream) == 1
        await asyncio.sleep(10.1)
        with pytest.raises(StreamStalled):
            await anext(stream)


@in_virtual_time
async def test_an_agent_leaves_a_reader_who_reads_nothing_for_five_minutes(
    network: MemoryNetwork,
) -> None:
    agent = Probe()
    async with sentinel() as hub, fabric(hub) as node, fabric(hub):
        await node.serve(agent, ADDRESS)
        stream = aiter(Agent.remote_by_address(ADDRESS).count(1_000_000))
        await anext(stream)
        begun = now()
        await agent.left.wait()
        assert now() - begun == pytest.approx(300.0, abs=1.0)
        with pytest.raises(StreamStalled):
            while True:
                await anext(stream)


@in_virtual_time
async def test_messages_for_an_address_that_does_not_return_are_refused_after_10_seconds(
    network: MemoryNetwork,
) -> None:
    storage = await open_provider(StorageSettings())
    async with sentinel() as hub, fabric(hub) as client:
        settings = Settings(admission_url=url(hub))
        async with Fabric(settings, storage=storage) as node:
            await node.serve(Probe(), ADDRESS)
        async with Fabric(settings, storage=storage):
            begun = now()
            with pytest.raises(NoRoute):
                await Probe.remote(ADDRESS, fabric=client).echo(1)
            assert now() - begun == pytest.approx(10.0, abs=0.1)


@in_virtual_time
async def test_a_message_without_an_acknowledgement_is_sent_again_after_2_4_8_and_10_seconds(
    network: MemoryNetwork,
) -> None:
    async with sentinel() as hub, fabric(hub, **AT_LEAST_ONCE) as client:
        agent = await attached(network, hub.port, ADDRESS)
        begun = now()
        sending = asyncio.create_task(client.send_message(ADDRESS, "hello"))
        times, ids = [], set()
        for _ in range(6):
            message = await agent.hear("Data")
            times.append(round(now() - begun))
            ids.add(message["id"])
        assert times == [0, 2, 6, 14, 24, 34]
        with pytest.raises(CallTimeout, match="within 30 seconds"):
            await sending
        assert len(ids) == 1


@in_virtual_time
async def test_a_link_is_opened_again_after_pauses_that_double_to_a_second(
    network: MemoryNetwork,
) -> None:
    async with sentinel(node_id="hub") as hub, fabric(hub) as client:
        port = hub.port
        listener = network.listeners.pop(port)
        network.links[0].close()
        await asyncio.sleep(60)
        assert not client.describe()["attached"]
        network.listeners[port] = listener
        begun = now()
        await client._running.sender.way_out.wait_for_channel()
        assert now() - begun <= 1.0


@in_virtual_time
async def test_calls_are_tried_again_for_10_seconds_after_a_sentinel_has_restarted(
    network: MemoryNetwork,
) -> None:
    hub = sentinel(node_id="hub")
    await hub.start()
    port = hub.port
    async with fabric(hub) as client:
        await hub.stop()
        hub = sentinel(node_id="hub", listener_port=port)
        await hub.start()
        await client._running.sender.way_out.wait_for_channel()
        begun = now()
        with pytest.raises(NoRoute):
            await Probe.remote(ADDRESS, fabric=client).echo()
        assert now() - begun == pytest.approx(ROUTES_RETURN_SECONDS, abs=0.5)
        begun = now()
        with pytest.raises(NoRoute):
            await Probe.remote(ADDRESS, fabric=client).echo()
        assert now() - begun < 0.1
    await hub.stop()


@in_virtual_time
async def test_a_call_waits_for_an_agent_that_returns_to_a_restarted_sentinel(
    network: MemoryNetwork,
) -> None:
    storage = await open_provider(StorageSettings())
    known = Settings(node_id="hub", listener_port=7)
    agent_settings = Settings(node_id="agent", admission_url="ws://memory:7/fame/x")
    async with Sentinel(known, storage=storage), Fabric(agent_settings) as node:
        await node.serve(Probe(), ADDRESS)
    async with (
        Sentinel(known, storage=storage),
        Fabric(Settings(admission_url="ws://memory:7/fame/x")) as client,
    ):
        calls = [
            asyncio.create_task(Probe.remote(ADDRESS, fabric=client).echo(number))
            for number in range(100)
        ]
        await asyncio.sleep(5)
        assert not any(call.done() for call in calls)
        async with Fabric(agent_settings) as node:
            await node.serve(Probe(), ADDRESS)
            assert await asyncio.gather(*calls) == list(range(100))


@in_virtual_time
async def test_a_call_for_an_agent_that_does_not_return_is_refused_after_10_seconds(
    network: MemoryNetwork,
) -> None:
    storage = await open_provider(StorageSettings())
    known = Settings(node_id="hub", listener_port=7)
    url = "ws://memory:7/fame/x"
    async with Sentinel(known, storage=storage), Fabric(Settings(admission_url=url)) as node:
        await node.serve(Probe(), ADDRESS)
    begun = now()
    async with Sentinel(known, storage=storage), Fabric(Settings(admission_url=url)) as client:
        with pytest.raises(NoRoute) as caught:
            await Probe.remote(ADDRESS, fabric=client).echo()
        assert caught.value.code == "CHILD_UNREACHABLE"
        assert now() - begun == pytest.approx(10.0, abs=0.1)
        begun = now()
        with pytest.raises(NoRoute):
            await Probe.remote(ADDRESS, fabric=client).echo()
        assert now() - begun < 0.1


@in_virtual_time
async def test_calls_end_at_once_when_their_own_node_stops(network: MemoryNetwork) -> None:
    async with sentinel() as hub, fabric(hub) as node:
        await node.serve(Probe(), ADDRESS)
        async with fabric(hub) as client:
            remote = Probe.remote(ADDRESS, fabric=client)
            call = asyncio.create_task(remote.hang())
            stream = aiter(remote.count(1_000_000))
            await anext(stream)
            calls = client.calls
            await asyncio.sleep(1)
        begun = now()
        with pytest.raises(CallInterrupted, match="This node has stopped"):
            await call
        with pytest.raises(CallInterrupted, match="This node has stopped"):
            while True:
                await anext(stream)
        with pytest.raises(CallInterrupted, match="was not sent"):
            await calls.call(Target(ADDRESS), "echo", b"{}")
        with pytest.raises(NotStarted):
            await remote.echo(1)
        assert now() - begun < 0.1


@in_virtual_time
async def test_children_that_stay_away_for_a_week_are_forgotten(network: MemoryNetwork) -> None:
    async with sentinel() as hub:
        for number in range(3):
            async with fabric(hub, node_id=f"agent-{number}") as node:
                await node.serve(Probe(), ADDRESS)
            await asyncio.sleep(3 * 24 * 3600)
        known = [each["id"] for each in hub.children.describe()["nodes"]]
        assert known == ["agent-0", "agent-1", "agent-2"]
        async with fabric(hub, node_id="agent-3"):
            await asyncio.sleep(3 * 24 * 3600)
        await asyncio.sleep(1)
        known = [each["id"] for each in hub.children.describe()["nodes"]]
        assert known == ["agent-2"]
        store = await hub.storage.open("__route_store")
        assert await store.count() == 1


@in_virtual_time
async def test_an_agent_whose_address_was_taken_meanwhile_gets_it_back_when_it_is_free(
    network: MemoryNetwork,
) -> None:
    first, second = Probe(), Probe()
    hub = sentinel(node_id="hub", listener_port=7)
    await hub.start()
    async with fabric(hub) as client, fabric(hub) as older:
        await older.serve(first, ADDRESS)
        network.listeners.pop(7)
        network.links[1].close()
        await asyncio.sleep(1)
        network.listeners[7] = hub.children
        async with fabric(hub) as newer:
            await newer.serve(second, ADDRESS)
            await asyncio.sleep(20)
            assert older.describe()["attached"]
            await client.send_message(ADDRESS, "to the newer one")
            await asyncio.sleep(1)
        await client.send_message(ADDRESS, "to the older one")
        await asyncio.sleep(1)
    await hub.stop()
    assert (second.messages, first.messages) == (["to the newer one"], ["to the older one"])


@in_virtual_time
async def test_a_second_agent_at_the_address_of_an_attached_one_is_refused(
    network: MemoryNetwork,
) -> None:
    async with sentinel() as hub, fabric(hub, node_id="one") as one, fabric(hub) as two:
        await one.serve(Probe(), ADDRESS)
        with pytest.raises(AttachRefused, match="one has this address, and is attached"):
            await two.serve(Probe(), ADDRESS)
        assert ADDRESS not in two.describe()["bindings"]
        for node in (one, two):
            await node.serve(Probe(), "pool@*.fame.fabric")  # where there is room for both


@in_virtual_time
async def test_a_call_whose_link_breaks_ends_at_once(network: MemoryNetwork) -> None:
    async with sentinel() as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(Probe(), ADDRESS)
        call = asyncio.create_task(Probe.remote(ADDRESS, fabric=client).hang())
        await asyncio.sleep(1)
        network.links[-1].close()
        begun = now()
        with pytest.raises(CallInterrupted):
            await call
        assert now() - begun < 0.1


@in_virtual_time
async def test_a_sentinel_that_stops_while_messages_wait_leaves_nothing_that_fails_later(
    network: MemoryNetwork,
) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    storage = await open_provider(StorageSettings())
    known = Settings(node_id="hub", listener_port=7)
    settings = Settings(admission_url="ws://memory:7/fame/x")
    async with Sentinel(known, storage=storage), Fabric(settings) as node:
        await node.serve(Probe(), ADDRESS)
    async with Sentinel(known, storage=storage), Fabric(settings) as client:
        call = asyncio.create_task(Probe.remote(ADDRESS, fabric=client).echo())
        await asyncio.sleep(1)
    with pytest.raises(CallInterrupted):
        await call
    await asyncio.sleep(20)
    assert failures == []


@in_virtual_time
async def test_of_two_new_links_for_a_node_whose_old_one_is_dead_one_is_admitted(
    network: MemoryNetwork,
) -> None:
    async with sentinel() as hub:
        old = await attached(network, hub.port)
        old.link.peer.is_silent = True
        links = [network.raw_child(hub.port) for _ in range(2)]
        for link in links:
            link.say({"type": "NodeAttach", "systemId": "raw"}, corrId="a")
        answers = [(await link.hear("NodeAttachAck"))["frame"]["ok"] for link in links]
        assert sorted(answers) == [False, True]
        assert len([each for each in hub.children.links if each.system_id == "raw"]) == 1


MALFORMED = {
    "a wrong type": {"rtype": "x"},
    "a long id": {"corrId": "x" * 1000},
    "many capabilities": {"capabilities": ["x"] * 1000},
    "an unknown frame": {"frame": {"type": "KeyRequest"}},
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
@in_virtual_time
async def test_a_node_keeps_its_link_whatever_other_nodes_wrote(
    network: MemoryNetwork, fields: dict[str, Any]
) -> None:
    network.listeners[1] = hub = RawSentinel()
    async with asyncio.TaskGroup() as tasks:
        attaching = tasks.create_task(hub.attach("first"))
        async with Fabric(Settings(admission_url="ws://memory:1/fame/x")) as node:
            child = await attaching
            child.link.send(b"{")
            envelope = {"id": "m", "frame": {"type": "Data", "payload": 1}, **fields}
            child.link.send(json.dumps(envelope).encode())
            await child.hear("NodeHeartbeat")
            assert node.describe()["attached"]


@in_virtual_time
async def test_a_node_keeps_its_link_however_many_flows_others_use(
    network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "FORGET_ABOVE", 10)
    network.listeners[1] = hub = RawSentinel()
    async with asyncio.TaskGroup() as tasks:
        attaching = tasks.create_task(hub.attach("first"))
        async with Fabric(Settings(admission_url="ws://memory:1/fame/x")) as node:
            child = await attaching
            held: list[Any] = []
            monkeypatch.setattr(node, "on_message", lambda *message: held.append(message))
            for number in range(20):
                child.say({"type": "Data", "payload": 1}, flowId=f"f{number}")
            await child.hear("NodeHeartbeat")
            assert len(held) == 20
            assert node.describe()["attached"]
