"""Bounds: hostile, careless and slow peers harm their own link at most."""

import asyncio
import contextlib
import gc
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from strongroom import Agent, Fabric
from strongroom.errors import CallInterrupted, StreamStalled
from strongroom.messaging import calls, flow
from strongroom.nodes import child_link
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel, sentinel_agent_and_client
from support.peer import PATH, close_code, raw_child, say
from support.proxy import proxied

HOSTILE = {
    "not JSON": b"{",
    "not an envelope": b"[]",
    "not UTF-8": b'{"x":"\xff","frame":{"type":"NodeHeartbeat"}}',
    "too deep": b"[" * 100_000,
    "a frame with a field of the wrong type": b'{"frame":{"type":"AddressBind","address":1}}',
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_a_malformed_message_closes_its_link_with_a_reason(data: bytes) -> None:
    async with sentinel_agent_and_client(Probe()) as hub:
        async with raw_child(hub) as link:
            await link.send(data)
            code, reason = await close_code(link)
            assert code == 1008
            assert reason is not None
            assert "Not an envelope" in reason
        assert await Agent.remote_by_address(ADDRESS).echo(1) == 1


async def test_a_message_over_the_limit_closes_its_link_with_a_reason() -> None:
    async with sentinel_agent_and_client(Probe()) as hub:
        for parts in (b"x" * 300_000, [b"x" * 100_000] * 3, [b"x"] * 5000):
            async with raw_child(hub) as link:
                await link.send(parts)
                assert (await close_code(link))[0] == 1009
        assert await Agent.remote_by_address(ADDRESS).echo(1) == 1


async def test_fragments_within_the_limit_are_one_message() -> None:
    async with sentinel() as hub, raw_child(hub, attach=False) as link:
        message = b'{"id":"1","corrId":"c","frame":{"type":"NodeAttach","systemId":"raw"}}'
        await link.send([message[:5], message[5:30], message[30:]])
        assert json.loads(await link.recv())["frame"]["ok"]


async def test_text_is_accepted_and_binary_is_sent() -> None:
    async with sentinel() as hub, raw_child(hub, attach=False) as link:
        await link.send('{"id":"1","corrId":"c","frame":{"type":"NodeAttach","systemId":"raw"}}')
        assert isinstance(await link.recv(), bytes)


async def test_unknown_frames_are_skipped() -> None:
    async with sentinel() as hub, raw_child(hub) as link:
        await say(link, "2", {"type": "KeyRequest", "kid": "k"})
        await say(link, "3", {"type": "NodeHeartbeat"}, corrId="c3")
        ack = json.loads(await link.recv())
        assert (ack["corrId"], ack["frame"]["refId"]) == ("c3", "3")
        assert ack["frame"]["routingEpoch"] == hub.children._epoch


async def test_nothing_is_accepted_before_the_attach() -> None:
    async with sentinel() as hub, raw_child(hub, attach=False) as link:
        await say(link, "1", {"type": "AddressBind", "address": ADDRESS})
        assert await close_code(link) == (1008, "the first message is NodeAttach")


async def test_an_id_that_is_not_the_dialled_one_is_refused() -> None:
    async with sentinel() as hub, raw_child(hub, "one", attach=False) as link:
        await say(link, "1", {"type": "NodeAttach", "systemId": "two"}, corrId="c")
        ack = json.loads(await link.recv())
        assert not ack["frame"]["ok"]
        assert ack["corrId"] == "c"
        assert (await close_code(link))[0] == 1008


async def test_other_paths_are_refused_and_the_health_check_is_answered() -> None:
    async with sentinel() as hub:
        for path, status in (
            ("/fame/v1/attach/ws/sideways/x", 403),
            ("/fame/v1/attach/ws/downstream/", 403),
            ("/", 404),
        ):
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"ws://127.0.0.1:{hub.port}{path}")
            assert caught.value.response.status_code == status
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(b"GET /fame/v1/attach/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == "healthy"


async def test_a_second_node_under_the_id_of_one_that_answers_is_refused() -> None:
    async with sentinel() as hub, raw_child(hub) as older, raw_child(hub, attach=False) as newer:
        await say(newer, "1", {"type": "NodeAttach", "systemId": "raw"}, corrId="c")
        ack = json.loads(await newer.recv())["frame"]
        assert not ack["ok"]
        assert "Another node with the id 'raw' is attached" in ack["reason"]
        assert (await close_code(newer))[0] == 1008
        await say(older, "2", {"type": "NodeHeartbeat"}, corrId="c2")
        assert json.loads(await older.recv())["frame"]["ok"]


async def test_a_node_whose_old_link_does_not_answer_returns_on_a_new_one() -> None:
    async with sentinel() as hub, proxied(hub.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}{PATH}raw"
        async with connect(url, close_timeout=0) as older:
            await say(older, "1", {"type": "NodeAttach", "systemId": "raw"}, corrId="c")
            await older.recv()
            proxy.flowing.clear()  # the network swallows all that either end sends
            async with raw_child(hub) as newer:
                await say(newer, "2", {"type": "NodeHeartbeat"}, corrId="c2")
                assert json.loads(await newer.recv())["frame"]["ok"]


async def test_names_outlive_their_link_as_long_as_the_epoch() -> None:
    async with sentinel() as hub, fabric(hub):
        async with raw_child(hub) as link:
            await say(link, "2", {"type": "AddressBind", "address": "x@fame.fabric"}, corrId="b")
            assert json.loads(await link.recv())["frame"]["ok"]
        async with raw_child(hub) as link, fabric(hub) as client:
            remote: Any = Agent.remote("x@fame.fabric", fabric=client)
            call = asyncio.create_task(remote.anything())
            request = json.loads(await link.recv())
            assert request["frame"]["payload"]["method"] == "anything"
            await link.close()
            with pytest.raises(CallInterrupted):
                await call


async def test_a_flood_beyond_its_credit_waits_in_the_senders_socket_and_loses_nothing() -> None:
    async with sentinel() as hub, raw_child(hub, "deaf") as deaf, raw_child(hub, "loud") as loud:
        await say(deaf, "2", {"type": "AddressBind", "address": ADDRESS}, corrId="b")
        await deaf.recv()
        padding = "x" * 10_000
        sending = asyncio.create_task(flood(loud, 2000, padding))
        await asyncio.sleep(0.5)
        [channel] = [each.channel for each in hub.children.links if each.system_id == "loud"]
        assert channel._incoming["f"].held < 500  # the rest is in the socket, or not even sent
        got = 0
        while got < 2000:
            envelope = json.loads(await deaf.recv())
            if envelope["frame"]["type"] == "Data":
                assert envelope["id"] == str(got)
                got += 1
                if got % flow.CREDIT_AFTER == 0:
                    credit = {"type": "CreditUpdate", "flowId": "f", "credits": flow.CREDIT_AFTER}
                    await say(deaf, "c", credit, flowId="f")
        await sending
        await say(loud, "3", {"type": "NodeHeartbeat"}, corrId="c3")
        while "HeartbeatAck" not in str(await loud.recv()):
            pass


async def flood(link: ClientConnection, number: int, padding: str) -> None:
    for each in range(number):
        frame = {"type": "Data", "payload": padding}
        await say(link, str(each), frame, to=ADDRESS, flowId="f")


@pytest.mark.parametrize("number", [97, 300])
async def test_many_calls_at_once_at_least_once_cost_nobody_the_link(number: int) -> None:
    settings = {"delivery_profile": "at-least-once"}
    async with (
        sentinel() as hub,
        fabric(hub, **settings) as node,
        fabric(hub, **settings) as client,
    ):
        await node.serve(Probe(), ADDRESS)
        remote = Probe.remote(ADDRESS, fabric=client)
        links = {each.link for each in hub.children.links}
        results = await asyncio.gather(*(remote.echo(each) for each in range(number)))
        assert results == list(range(number))
        assert {each.link for each in hub.children.links} == links


@pytest.mark.parametrize("number", [120, pytest.param(500, marks=pytest.mark.slow)])
async def test_many_streams_cancelled_in_one_turn_cost_nobody_the_link(number: int) -> None:
    async with sentinel() as hub, fabric(hub) as node, fabric(hub) as client:
        await node.serve(Probe(), ADDRESS)
        remote = Probe.remote(ADDRESS, fabric=client)
        links = {each.link for each in hub.children.links}
        streams = [aiter(remote.count(1_000_000)) for _ in range(number)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        closing = [asyncio.create_task(stream.aclose()) for stream in streams]  # type: ignore[attr-defined]
        await asyncio.gather(*closing)
        assert await remote.echo("still there") == "still there"
        assert {each.link for each in hub.children.links} == links
        await eventually(lambda: len(node._running.incoming) == 0, within=60)


async def test_a_flood_of_flows_closes_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_link, "MAX_FLOWS", 100)
    async with sentinel() as hub, raw_child(hub, "deaf") as deaf, raw_child(hub, "loud") as loud:
        await say(deaf, "2", {"type": "AddressBind", "address": ADDRESS}, corrId="b")
        await deaf.recv()
        with contextlib.suppress(ConnectionClosed):
            for number in range(33 * 120):
                frame = {"type": "Data", "payload": 1}
                await say(loud, "m", frame, to=ADDRESS, flowId=f"f{number // 33}")
        code, reason = await close_code(loud)
        assert (code, reason) == (1008, "more than 100 flows are in use")


async def test_a_stream_that_is_left_is_forgotten_by_the_sentinel() -> None:
    async with sentinel_agent_and_client(Probe()) as hub:
        stream = Agent.remote_by_address(ADDRESS).count(1_000_000)
        await anext(stream)
        assert any(child.under_way for child in hub.children.links)
        await stream.aclose()
        await eventually(lambda: not any(child.under_way for child in hub.children.links))
        assert not any(child._called for child in hub.children.links)


async def test_thousands_of_streams_leave_nothing_behind() -> None:
    async with sentinel_agent_and_client(Probe()) as hub:
        remote = Agent.remote_by_address(ADDRESS)

        async def read_one(number: int) -> None:
            assert [item async for item in remote.count(number % 50)] == list(range(number % 50))

        for _ in range(20):
            await asyncio.gather(*(read_one(number) for number in range(100)))
        client = Fabric.current()
        assert len(client.calls) == 0
        await eventually(lambda: all(not child.under_way for child in hub.children.links))
        channels = [child.channel for child in hub.children.links]
        uplink = client._running.sender.way_out
        for channel in (*channels, await uplink.wait_for_channel()):
            assert len(channel._incoming) + len(channel._outgoing) < 20


async def test_a_reader_that_stalls_a_shared_flow_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "STALL_SECONDS", 0.2)
    async with sentinel() as hub, raw_child(hub) as agent, fabric(hub) as client:
        await say(agent, "2", {"type": "AddressBind", "address": ADDRESS}, corrId="b")
        await agent.recv()
        remote: Any = Agent.remote(ADDRESS, fabric=client)
        stream = aiter(remote.anything())
        first = asyncio.ensure_future(anext(stream))
        request = json.loads(await agent.recv())
        corr_id = request["corrId"]
        for number in range(5):
            payload = {"jsonrpc": "2.0", "id": corr_id, "result": number}
            frame = {"type": "Data", "payload": payload}
            await say(agent, "m", frame, to=request["replyTo"], corrId=corr_id, flowId="shared")
        assert await first == 0
        await asyncio.sleep(0.5)
        with pytest.raises(StreamStalled):
            await anext(stream)
        closed = json.loads(await agent.recv())
        assert closed["frame"]["code"] == "STREAM_CLOSED"
        assert (closed["corrId"], closed["frame"]["refId"]) == (corr_id, request["id"])


NAME = st.sampled_from(["id", "to", "replyTo", "corrId", "flowId", "rtype", "capabilities", "x"])
VALUE: st.SearchStrategy[Any] = st.sampled_from(
    [None, 1, -1, 2**70, "", "x", ADDRESS, "a@/b/raw", [], ["x"], {}, 0.5]
)
TYPE = st.sampled_from(
    [
        "Data",
        "DeliveryAck",
        "CreditUpdate",
        "AddressBind",
        "AddressUnbind",
        "CapabilityAdvertise",
        "CapabilityWithdraw",
        "NodeAttach",
        "NodeAttachAck",
        "NodeHeartbeat",
        "NodeHeartbeatAck",
        "Nonsense",
    ]
)
FIELD = st.sampled_from(
    ["ok", "address", "capabilities", "flowId", "credits", "payload", "systemId", "refId", "code"]
)


def takes_the_address_over(message: bytes) -> bool:
    """The last node to bind an address gets its messages, so this is allowed and harms nobody."""
    frame = json.loads(message)["frame"]
    return bool(frame["type"] == "AddressBind" and frame.get("address") == ADDRESS)


MESSAGE = st.builds(
    lambda fields, kind, frame: json.dumps({**fields, "frame": {"type": kind, **frame}}).encode(),
    st.dictionaries(NAME, VALUE),
    TYPE,
    st.dictionaries(FIELD, VALUE | st.booleans()),
).filter(lambda message: not takes_the_address_over(message))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MESSAGE | st.binary(max_size=50), max_size=10))
def test_no_sequence_of_frames_harms_anyone_else(messages: list[bytes]) -> None:
    async def attempt() -> None:
        async with sentinel_agent_and_client(Probe()) as hub, raw_child(hub) as link:
            with contextlib.suppress(ConnectionClosed):
                for message in messages:
                    await link.send(message)
                await link.ping()
            assert await Agent.remote_by_address(ADDRESS).echo(1) in {1, None}

    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(attempt())
    finally:
        logging.disable(logging.NOTSET)


async def test_links_that_come_and_go_leave_nothing_behind() -> None:
    def channels() -> int:
        gc.collect()
        return sum(type(each) is flow.Channel for each in gc.get_objects())

    async with sentinel() as hub:
        before = channels()
        for number in range(50):
            async with raw_child(hub, f"child-{number}"):
                pass
        await eventually(lambda: not hub.children.links)
        assert channels() <= before + 4
