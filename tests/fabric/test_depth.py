"""Values and fields are nested 64 levels deep at most; their reader refuses more."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom import Agent, Fabric, operation
from strongroom.errors import InvalidArguments, OperationFailed, ProtocolError
from strongroom.messaging.depth import is_too_deep
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel, sentinel_agent_and_client
from support.peer import close_code, raw_child, say

DEEP = "nested more than 64 levels deep"


def nested(levels: int) -> Any:
    value: Any = "a [ in a text"
    for level in range(levels):
        value = [value] if level % 2 else {"]": value}
    return value


class Deep(Probe):
    @operation
    async def make(self, levels: int) -> Any:
        return nested(levels)

    @operation
    async def make_items(self, levels: int) -> AsyncIterator[Any]:
        yield nested(64)
        yield nested(levels)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


TEXTS = st.text('[]{}"\\\\a', max_size=5)
VALUES = st.recursive(
    TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=200
)


@given(VALUES, st.integers(50, 70))
def test_brackets_in_texts_do_not_count(value: Any, more: int) -> None:
    for _ in range(more):
        value = [value, '"]' * 70]
    assert is_too_deep(json.dumps(value).encode()) == (depth(value) > 64)


async def test_64_levels_cross_the_wire_and_65_are_refused_at_their_sender() -> None:
    agent = Deep()
    async with sentinel_agent_and_client(agent):
        remote, untyped = Deep.remote(ADDRESS), Agent.remote_by_address(ADDRESS)
        assert await remote.echo(nested(64)) == nested(64)
        for each in (remote, untyped):
            with pytest.raises(InvalidArguments, match=DEEP):
                await each.echo(nested(65))
        with pytest.raises(OperationFailed, match=DEEP):
            await remote.make(65)
        items = remote.make_items(65)
        assert await anext(items) == nested(64)
        with pytest.raises(OperationFailed, match=DEEP):
            await anext(items)
        await Fabric.current().send_message(ADDRESS, nested(64))
        with pytest.raises(InvalidArguments, match=DEEP):
            await Fabric.current().send_message(ADDRESS, nested(65))
        await eventually(lambda: agent.messages == [nested(64)])


@pytest.mark.parametrize("levels", [65, 500, 50_000])
async def test_a_peers_request_or_message_that_is_too_deep_does_not_run(levels: int) -> None:
    agent = Probe()
    async with sentinel_agent_and_client(agent) as hub, raw_child(hub) as child:
        value = "[" * levels + "]" * levels
        payload = f'{{"type":"Data","payload":{value}}}'
        call = f'{{"jsonrpc":"2.0","method":"echo","params":{{"args":[{value}]}}}}'
        request = f'{{"type":"Data","payload":{call}}}'
        head = f'{{"id":"m","to":"{ADDRESS}","corrId":"c","replyTo":"x@{hub.path}/raw"'
        if levels < 10_000:
            await child.send(f'{head},"rtype":2,"frame":{request}}}'.encode())
            error = json.loads(await child.recv())["frame"]["payload"]["error"]
            assert re.search(f"{DEEP}|recursion", error["message"])
        await child.send(f'{head},"frame":{payload}}}'.encode())
        assert await Agent.remote_by_address(ADDRESS).echo(1) == 1
        assert agent.messages == []


@pytest.mark.parametrize("levels", [64, 65])
async def test_a_peers_answer_that_is_too_deep_is_an_error_at_its_caller(levels: int) -> None:
    async with sentinel() as hub, raw_child(hub) as child, fabric(hub):
        await say(child, "b", {"type": "AddressBind", "address": ADDRESS}, corrId="b")
        await child.recv()
        call = asyncio.ensure_future(Agent.remote_by_address(ADDRESS).echo())
        request = json.loads(await child.recv())
        answer = {"jsonrpc": "2.0", "id": request["corrId"], "result": nested(levels)}
        to = {"to": request["replyTo"], "corrId": request["corrId"]}
        await say(child, "a", {"type": "Data", "payload": answer}, **to)
        if levels == 64:
            assert await call == nested(64)
        else:
            with pytest.raises(ProtocolError, match=DEEP):
                await call


@pytest.mark.parametrize("kind", ["Data", "DeliveryAck", "NodeHeartbeat", "AddressBind"])
async def test_a_field_that_we_do_not_know_is_nested_64_levels_at_most(kind: str) -> None:
    frame = {"type": kind, "ok": True, "address": ADDRESS}
    for extra in ("envelope", "frame"):
        async with sentinel() as hub, raw_child(hub) as child:
            for levels in (64, 65):
                deep = {"more": nested(levels)}
                of_frame, of_envelope = (deep, {}) if extra == "frame" else ({}, deep)
                await say(child, "m", {**frame, **of_frame}, **of_envelope)
                await say(child, "h", {"type": "NodeHeartbeat"}, corrId="h")
                if levels == 64:
                    while json.loads(await child.recv()).get("corrId") != "h":
                        pass
            code, reason = await close_code(child)
            assert code == 1008
            assert reason == "Not an envelope: a field is nested more than 64 levels deep"
