"""What one child may send has limits; beyond them it is refused, and nobody else is."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from strongroom import Agent, BaseAgent, NoRoute, Sentinel, operation
from strongroom.errors import InvalidArguments, OperationFailed
from strongroom.nodes import child_link, children, names
from strongroom.settings import StorageSettings
from strongroom.storage import MemoryProvider, Write
from strongroom.storage.provider import open_provider
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel, sentinel_agent_and_client
from support.peer import close_code, raw_child, say

LONG = "x" * 257


async def hear(link: ClientConnection, kind: str) -> dict[str, Any]:
    """The next envelope with a frame of this type."""
    async with asyncio.timeout(5):
        while True:
            envelope: dict[str, Any] = json.loads(await link.recv())
            if envelope["frame"]["type"] == kind:
                return envelope


async def ask(link: ClientConnection, kind: str, **frame: Any) -> dict[str, Any]:
    """Send a control frame, and return the frame of its answer."""
    await say(link, "m", {"type": kind, **frame}, corrId="c")
    answer: dict[str, Any] = (await hear(link, f"{kind}Ack"))["frame"]
    return answer


async def is_alive(link: ClientConnection) -> bool:
    return bool((await ask(link, "NodeHeartbeat"))["ok"])


@asynccontextmanager
async def bound_child(hub: Sentinel, name: str, address: str) -> AsyncIterator[ClientConnection]:
    async with raw_child(hub, name) as link:
        assert (await ask(link, "AddressBind", address=address))["ok"]
        yield link


# --- what a frame may contain ---


@pytest.mark.parametrize(
    "fields",
    [
        {"id": LONG},
        {"corrId": LONG},
        {"flowId": LONG},
        {"traceId": LONG},
        {"sid": LONG},
        {"to": "x@" + "y" * 600},
        {"replyTo": "x@" + "y" * 600},
        {"capabilities": [LONG]},
        {"capabilities": ["x"] * 65},
        {"frame": {"type": "DeliveryAck", "ok": False, "refId": LONG}},
        {"frame": {"type": "DeliveryAck", "ok": False, "code": LONG}},
        {"frame": {"type": "AddressBind", "address": "x@" + "y" * 600}},
        {"frame": {"type": "CapabilityAdvertise", "address": ADDRESS, "capabilities": [LONG]}},
        {"frame": {"type": "CapabilityWithdraw", "address": ADDRESS, "capabilities": ["x"] * 65}},
        {"frame": {"type": "CreditUpdate", "flowId": LONG, "credits": 1}},
        {"frame": {"type": "NodeAttach", "systemId": LONG}},
    ],
    ids=lambda fields: json.dumps(fields)[:60].replace("x", ""),
)
async def test_a_frame_with_more_than_is_allowed_closes_its_senders_link(
    fields: dict[str, Any],
) -> None:
    async with sentinel_agent_and_client(Probe()) as hub, raw_child(hub) as link:
        envelope = {"id": "m", "to": ADDRESS, "frame": {"type": "Data", "payload": 1}, **fields}
        await link.send(json.dumps(envelope))
        code, reason = await close_code(link)
        assert (code, str(reason)[:15]) == (1008, "Not an envelope")
        assert await Agent.remote_by_address(ADDRESS).echo(1) == 1


async def test_a_reason_that_is_cut_within_a_character_still_closes_the_link() -> None:
    async with sentinel() as hub:
        for number in range(4):
            async with raw_child(hub, attach=False) as link:
                attach = {"type": "NodeAttach", "systemId": "x" * number + "\N{SNOWMAN}" * 100}
                await say(link, "1", attach, corrId="c")
                assert (await close_code(link))[0] == 1008


@pytest.mark.parametrize("request_id", ["x" * 5000, 10**400])
async def test_no_request_makes_an_agent_send_what_costs_it_its_link(request_id: Any) -> None:
    async with sentinel_agent_and_client(Probe()) as hub, raw_child(hub) as link:
        links = {each.link for each in hub.children.links}
        payload = {"jsonrpc": "2.0", "id": request_id, "method": "echo", "params": {}}
        reply_to = f"__rpc__x@{hub.path}/raw"
        frame = {"type": "Data", "payload": payload}
        await say(link, "m", frame, to=ADDRESS, replyTo=reply_to, rtype=2)
        assert (await hear(link, "Data"))["frame"]["payload"]["error"]
        assert await Agent.remote_by_address(ADDRESS).echo(1) == 1
        assert {each.link for each in hub.children.links} == links


# --- names ---

NAMES = {
    "AddressBind": {},
    "AddressUnbind": {},
    "CapabilityAdvertise": {"capabilities": ["c"]},
    "CapabilityWithdraw": {"capabilities": ["c"]},
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("no address", "not an address"),
        ("", "not an address"),
        ("x@/hub/other", "belongs to the node"),
        ("x@/hub/rawer", "belongs to the node"),
        ("x@/hub", "belongs to the node"),
        ("x@fame.fabric/hub/other", "belongs to the node"),
    ],
)
async def test_a_name_that_a_node_may_not_have_is_refused_at_the_frame(
    kind: str, address: str, reason: str
) -> None:
    async with sentinel(node_id="hub") as hub, raw_child(hub) as link:
        ack = await ask(link, kind, address=address, **NAMES[kind])
        assert not ack["ok"]
        assert reason in ack["reason"]
        assert (await ask(link, kind, address="x@/hub/raw/below", **NAMES[kind]))["ok"]
        assert (await ask(link, kind, address="x@fame.fabric", **NAMES[kind]))["ok"]


async def test_a_node_has_a_limited_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(names, "MAX_CHARACTERS", 1000)
    async with sentinel() as hub, raw_child(hub) as link:
        for number in range(3):
            assert (await ask(link, "AddressBind", address=f"a{number}@x"))["ok"]
        assert not (await ask(link, "AddressBind", address="a3@x"))["ok"]
        assert (await ask(link, "AddressBind", address="a0@x"))["ok"]  # it has it
        assert (await ask(link, "AddressUnbind", address="a0@x"))["ok"]
        assert (await ask(link, "AddressBind", address="a3@x"))["ok"]

        async def advertise(*capabilities: str) -> bool:
            ack = await ask(
                link, "CapabilityAdvertise", address="a3@x", capabilities=list(capabilities)
            )
            return bool(ack["ok"])

        assert await advertise(*(f"c{number}" for number in range(40)))
        assert not await advertise(*(f"d{number}" for number in range(40)))
        assert await advertise("c0")
        assert not await advertise(*("x" * 200 + str(number) for number in range(5)))


async def test_names_that_are_taken_back_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_CHARACTERS", 300)
    async with sentinel() as hub, raw_child(hub) as link:
        for _ in range(10):
            what = {"address": "a@x", "capabilities": ["x" * 100, "y" * 100]}
            assert (await ask(link, "CapabilityAdvertise", **what))["ok"]
            assert (await ask(link, "CapabilityWithdraw", **what))["ok"]
            assert (await ask(link, "CapabilityAdvertise", **what))["ok"]
            assert (await ask(link, "AddressUnbind", address="a@x"))["ok"]


async def test_a_node_changes_its_names_a_limited_number_of_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "CHANGES_AT_ONCE", 10)
    async with sentinel() as hub, raw_child(hub) as link, raw_child(hub, "other") as other:
        answers = [await ask(link, "AddressBind", address="a@x") for _ in range(50)]
        refused = [each for each in answers if not each["ok"]]
        assert "100 times a second" in refused[0]["reason"]
        assert (await ask(other, "AddressBind", address="b@x"))["ok"]


async def test_many_binds_at_once_share_their_writes() -> None:
    provider = MemoryProvider(StorageSettings())
    async with Sentinel(fabric_settings(), storage=provider) as hub, raw_child(hub) as link:
        for number in range(1000):
            frame = {"type": "AddressBind", "address": f"a{number}@x"}
            await say(link, str(number), frame, corrId="c")
        for _ in range(1000):
            assert (await hear(link, "AddressBindAck"))["frame"]["ok"]
        records = await provider.open("__route_store")
        [record] = await records.read(["raw"])
        assert record is not None
        assert record.value.count(b"@x") == 1000
        assert record.revision < 200  # each write contains all names


def fabric_settings() -> Any:
    return sentinel()._settings


async def test_what_cannot_be_read_in_the_store_of_routes_does_not_stop_a_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = StorageSettings(profile="sqlite", directory=tmp_path)
    async with sentinel(storage=storage, node_id="hub") as hub:
        async with bound_child(hub, "good", ADDRESS):
            pass
        port = hub.port
    provider = await open_provider(storage)
    records = await provider.open("__route_store")
    [good] = await records.read(["good"])
    assert good is not None
    bad = good.value.replace(b"test@fame.fabric", b"no address here!")
    assert bad != good.value
    await records.apply([Write("bad", bad), Write("worse", b"\x00\xff"), Write("empty", b"")])
    await provider.close()
    async with sentinel(storage=storage, listener_port=port) as hub, raw_child(hub, "good") as link:
        assert "bad" in caplog.text
        assert "worse" in caplog.text
        async with fabric(hub) as client:
            call = asyncio.ensure_future(Agent.remote(ADDRESS, fabric=client).echo(1))  # type: ignore[attr-defined]
            assert (await hear(link, "Data"))["to"] == ADDRESS
            call.cancel()


@pytest.mark.parametrize(("limit", "value"), [("MAX_AWAY", 5), ("MAX_AWAY_CHARACTERS", 60)])
async def test_nodes_that_come_and_go_under_new_ids_are_not_all_remembered(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, limit, value)
    async with sentinel() as hub, bound_child(hub, "stays", "stays@fame.fabric"):
        for number in range(20):
            async with bound_child(hub, f"n{number}", f"a{number:02}@fame.abc"):
                pass
            await eventually(lambda: len(hub.children.links) == 1)
        known = [node["id"] for node in hub.describe()["nodes"]]
        assert known == ["stays", "n15", "n16", "n17", "n18", "n19"]
        async with raw_child(hub, "n19"), fabric(hub) as client:
            with pytest.raises(NoRoute, match="Unroutable"):
                await Agent.remote("a01@fame.abc", fabric=client).x()  # type: ignore[attr-defined]


# --- messages ---


async def test_an_answer_never_goes_to_a_node_that_did_not_ask() -> None:
    async with (
        sentinel_agent_and_client(Probe()) as hub,
        bound_child(hub, "victim", "victim@fame.fabric") as victim,
        bound_child(hub, "raw", "mine@fame.fabric") as link,
    ):
        payload = {"jsonrpc": "2.0", "id": "c", "method": "echo", "params": {"value": 7}}

        async def call(to: str, reply_to: str) -> None:
            frame = {"type": "Data", "payload": payload}
            await say(link, "m", frame, to=to, replyTo=reply_to, corrId="c", rtype=2)

        for foreign in (
            f"__rpc__x@{hub.path}/victim",
            "victim@fame.fabric",
            f"__rpc__x@{hub.path}/rawer",
            f"victim@fame.fabric@{hub.path}/raw",
            "nobody@fame.fabric",
            "no address",
        ):
            for to in (ADDRESS, "nowhere@fame.fabric"):
                await call(to, foreign)
                nack = await hear(link, "DeliveryAck")
                assert nack["frame"]["reason"].startswith("The replyTo of the message")
                assert nack["to"].endswith(f"@{hub.path}/raw")
        for own in (f"__rpc__x@{hub.path}/raw", f"x@{hub.path}/raw/below", "mine@fame.fabric"):
            await call(ADDRESS, own)
            assert (await hear(link, "Data"))["frame"]["payload"]["result"] == 7
        assert await is_alive(victim)  # and the first that it hears is that


async def test_nacks_wait_for_the_credit_of_their_reader() -> None:
    async with sentinel() as hub, raw_child(hub) as link:
        for number in range(5000):  # and never gives credit for the nacks
            frame = {"type": "Data", "payload": 1}
            reply_to = f"x{number}@{hub.path}/raw"
            await say(link, "m", frame, to="no@x.y", replyTo=reply_to, corrId="c", flowId="f")
        await eventually(lambda: [each for each in hub.children.links if each.channel._is_paused])
        [child] = hub.children.links
        assert len(child.channel._outgoing[child.nack_flow_id].waiting) < 1000
        link.transport.abort()


async def test_what_waits_for_a_child_that_does_not_read_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "MAX_WAITING_BYTES", 500_000)
    async with sentinel() as hub:
        async with bound_child(hub, "deaf", ADDRESS) as deaf, raw_child(hub) as link:
            for number in range(400):
                frame = {"type": "Data", "payload": "x" * 100_000}
                place = {"replyTo": f"x@{hub.path}/raw", "corrId": str(number)}
                await say(link, "m", frame, to=ADDRESS, flowId=f"f{number % 16}", **place)
            nack = await hear(link, "DeliveryAck")
            assert nack["frame"]["code"] == "STREAM_STALLED"
            held = hub.describe()["held"]
            assert held["waiting_bytes"] < 700_000
            deaf.transport.abort()
        await eventually(lambda: hub.describe()["held"]["waiting_bytes"] == 0)


async def test_above_the_limit_for_all_only_those_with_more_than_their_share_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "MAX_ALL_WAITING_BYTES", 2_000_000)
    async with (
        sentinel_agent_and_client(Probe()) as hub,
        bound_child(hub, "deaf", "deaf@x.y") as deaf,
        raw_child(hub) as link,
    ):
        for number in range(400):
            frame = {"type": "Data", "payload": "x" * 100_000}
            place = {"replyTo": f"x@{hub.path}/raw", "corrId": str(number)}
            await say(link, "m", frame, to="deaf@x.y", flowId=f"f{number % 16}", **place)
        assert (await hear(link, "DeliveryAck"))["frame"]["code"] == "STREAM_STALLED"
        assert hub.describe()["held"]["waiting_bytes"] < 2_200_000
        assert len(await Agent.remote_by_address(ADDRESS).echo("y" * 100_000)) == 100_000
        deaf.transport.abort()


async def test_the_calls_of_one_child_push_out_only_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_link, "MAX_CALLS_UNDER_WAY", 10)
    async with (
        sentinel() as hub,
        bound_child(hub, "agent", ADDRESS) as agent,
        raw_child(hub) as link,
        raw_child(hub, "honest") as honest,
    ):
        frame = {"type": "Data", "payload": 1}
        honest_call = {"replyTo": f"x@{hub.path}/honest", "corrId": "mine", "rtype": 2}
        await say(honest, "m", frame, to=ADDRESS, **honest_call)
        await hear(agent, "Data")
        for number in range(30):
            call = {"replyTo": f"x@{hub.path}/raw", "corrId": str(number), "rtype": 2}
            await say(link, "m", frame, to=ADDRESS, flowId=f"f{number}", **call)
            await hear(agent, "Data")
        assert hub.describe()["held"]["calls_under_way"] == 11
        await agent.close()
        assert (await hear(honest, "DeliveryAck"))["corrId"] == "mine"
        lost = [(await hear(link, "DeliveryAck"))["corrId"] for _ in range(10)]
        assert lost == [str(number) for number in range(20, 30)]


async def test_a_call_under_anothers_correlation_id_does_not_hide_it() -> None:
    async with (
        sentinel() as hub,
        bound_child(hub, "agent", ADDRESS) as agent,
        raw_child(hub) as link,
        raw_child(hub, "honest") as honest,
    ):
        for each, name in ((honest, "honest"), (link, "raw")):
            call = {"replyTo": f"x@{hub.path}/{name}", "corrId": "same", "rtype": 2}
            await say(each, name, {"type": "Data", "payload": 1}, to=ADDRESS, **call)
            await hear(agent, "Data")
        await agent.close()
        for each, name in ((honest, "honest"), (link, "raw")):
            assert (await hear(each, "DeliveryAck"))["frame"]["refId"] == name


async def test_nothing_is_left_of_callers_that_come_and_go() -> None:
    async with sentinel() as hub, bound_child(hub, "agent", ADDRESS) as agent:
        for _ in range(5):
            async with raw_child(hub) as link:
                call = {"replyTo": f"x@{hub.path}/raw", "corrId": "c", "rtype": 2}
                await say(link, "m", {"type": "Data", "payload": 1}, to=ADDRESS, **call)
                await hear(agent, "Data")
        await eventually(lambda: hub.describe()["held"]["calls_under_way"] == 0)


class Deep(BaseAgent[Any]):
    @operation
    async def depth(self, value: Any) -> int:
        depth = 0
        while isinstance(value, list) and value:
            value, depth = value[0], depth + 1
        return depth


@pytest.mark.parametrize("depth", [60, 900, 990, 1000, 5000, 120_000])
async def test_a_value_of_any_depth_harms_nobody_else(depth: int) -> None:
    async with sentinel_agent_and_client(Deep()) as hub, raw_child(hub) as link:
        links = {each.link for each in hub.children.links if each.system_id != "raw"}
        inner = "[" * depth + "]" * depth
        payload = f'{{"jsonrpc":"2.0","id":"c","method":"depth","params":{{"value":{inner}}}}}'
        envelope = {"id": "m", "to": ADDRESS, "replyTo": f"x@{hub.path}/raw", "rtype": 2}
        text = json.dumps({**envelope, "corrId": "c", "frame": {"type": "Data", "payload": 0}})
        await link.send(text.replace('"payload": 0', f'"payload": {payload}').encode())
        assert await Agent.remote_by_address(ADDRESS).depth([[]]) == 1
        assert links <= {each.link for each in hub.children.links}


class Failing(BaseAgent[Any]):
    @operation
    async def fail(self) -> None:
        raise ValueError("the password is 1234")

    @operation(streaming=True)
    async def fail_later(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("the password is 1234")

    @operation
    async def add(self, a: int) -> int:
        return a


async def test_with_show_errors_type_callers_do_not_learn_messages_of_exceptions() -> None:
    async with sentinel() as hub, fabric(hub, show_errors="type") as node, fabric(hub) as client:
        await node.serve(Failing(), ADDRESS)
        remote = Failing.remote(ADDRESS, fabric=client)
        with pytest.raises(OperationFailed, match=r"fail\(\) raised ValueError") as caught:
            await remote.fail()
        assert "1234" not in str(caught.value)
        with pytest.raises(OperationFailed, match=r"raised ValueError") as caught:
            assert [each async for each in remote.fail_later()] == [1]
        assert "1234" not in str(caught.value)
        with pytest.raises(InvalidArguments, match="a"):  # what was wrong is the caller's own
            await remote.add("x")  # type: ignore[call-overload]


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_tracebacks_are_in_the_log_at_debug_only(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, logger="strongroom")
    async with sentinel_agent_and_client(Failing()):
        with pytest.raises(OperationFailed, match="1234"):
            await Agent.remote_by_address(ADDRESS).fail()
        assert "fail() raised the password is 1234" in caplog.text
        assert ("Traceback" in caplog.text) == (level == logging.DEBUG)
