"""Before a node attaches, its connection costs the sentinel little, and costs others nothing."""

import asyncio
import contextlib
import json
import logging
import resource
import socket
from collections.abc import AsyncIterator

import pytest
from websockets.exceptions import ConnectionClosed

from strongroom import Sentinel
from strongroom.messaging import listening
from strongroom.nodes import children
from support.fabrics import eventually, fabric, sentinel
from support.peer import attach, close_code, masked, raw_child, say, upgrade

REQUEST = upgrade("raw")


@contextlib.asynccontextmanager
async def connection(
    hub: Sentinel, request: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection to the sentinel, upgraded if `request` asks for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    try:
        if request:
            writer.write(request)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.transport.abort()


def strangers(hub: Sentinel) -> int:
    port = hub.children._listening
    assert isinstance(port, listening.Port)
    return len(port._strangers)


async def test_connections_beyond_the_limit_wait_until_a_stranger_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "MAX_STRANGERS", 3)
    async with sentinel() as hub, raw_child(hub, "attached") as child:
        async with connection(hub), connection(hub, REQUEST), connection(hub) as (_, last):
            await eventually(lambda: strangers(hub) == 3)
            attaching = asyncio.create_task(fabric(hub).start())
            await say(child, "2", {"type": "NodeHeartbeat"}, corrId="c2")
            assert json.loads(await child.recv())["frame"]["ok"]  # it has its place
            assert strangers(hub) == 3
            assert not attaching.done()
            last.transport.abort()
            await attaching
        await eventually(lambda: strangers(hub) == 0)


@pytest.mark.parametrize(
    "sent", [b"", REQUEST[:-2], REQUEST, REQUEST + masked(9, b"ping"), REQUEST + b"\x82"]
)
async def test_a_stranger_has_little_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "STRANGER_SECONDS", 0.1)
    async with sentinel() as hub, raw_child(hub, "attached"):
        async with connection(hub) as (reader, writer):
            writer.write(sent)
            answer = await reader.read()  # until it is closed
            assert (b"no NodeAttach came" in answer) == sent.startswith(REQUEST)
        await eventually(lambda: strangers(hub) == 0)
        assert len(hub.children.links) == 1


@pytest.mark.parametrize(
    "flood",
    [
        b"x" * 200_000,
        REQUEST + masked(2, b" " * 100_000, size=250_000),
        REQUEST + masked(2, b" " * 1000) * 100,
        REQUEST + masked(9, b"x" * 125) * 1000,
    ],
    ids=["no request", "a part of a message", "messages", "pings"],
)
async def test_a_stranger_sends_little(flood: bytes) -> None:
    async with sentinel() as hub:
        async with connection(hub) as (reader, writer):
            writer.write(flood)
            with contextlib.suppress(ConnectionError):
                await reader.read()
        await eventually(lambda: strangers(hub) == 0)
        async with raw_child(hub):  # its id is free
            pass


async def test_a_large_message_is_accepted_once_a_node_has_attached() -> None:
    async with sentinel() as hub, raw_child(hub) as link:
        await say(link, "2", {"type": "Data", "payload": "x" * 200_000}, to="nobody@fame.fabric")
        await say(link, "3", {"type": "NodeHeartbeat"}, corrId="c3")
        assert json.loads(await link.recv())["corrId"] == "c3"


async def test_an_unknown_frame_before_the_attach_closes_the_link() -> None:
    async with sentinel() as hub, raw_child(hub, attach=False) as link:
        await say(link, "1", {"type": "KeyRequest", "kid": "k"})
        assert await close_code(link) == (1008, "the first message is NodeAttach")


async def test_only_attached_nodes_count_as_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "MAX_CHILDREN", 1)
    async with sentinel() as hub, connection(hub, REQUEST), raw_child(hub, "first") as first:
        async with raw_child(hub, "second", attach=False) as second:
            await say(second, "1", {"type": "NodeAttach", "systemId": "second"}, corrId="c")
            ack = json.loads(await second.recv())["frame"]
            assert ack["reason"] == "There are 1 children already"
        await first.close()
        async with raw_child(hub, "first"):
            pass


async def test_pings_of_a_peer_that_does_not_read_fill_no_memory() -> None:
    async with sentinel() as hub, connection(hub, REQUEST) as (_, writer):
        writer.write(attach("raw"))
        await eventually(lambda: [each for each in hub.children.links if each.system_id])
        [child] = hub.children.links
        pings = masked(9, b"x" * 125) * 1000
        most = 0
        for _ in range(150):  # nobody reads the answers
            writer.write(pings)
            await writer.drain()
            most = max(most, child.link._unsent())
        assert most < 1024 * 1024


@pytest.mark.parametrize("reserved", [0, 64])
async def test_when_descriptors_run_out_nothing_spins_and_attached_nodes_work_on(
    reserved: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "RESERVED_DESCRIPTORS", reserved)
    monkeypatch.setattr(listening, "PAUSE_SECONDS", 0.3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    caplog.set_level(logging.WARNING)
    async with sentinel() as hub, raw_child(hub, "attached") as child:
        waiting = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(20)]
        limit = max(each.fileno() for each in waiting) + 1 + reserved
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            for number in range(200):  # each is a turn of the loop, and more
                await say(child, str(number), {"type": "NodeHeartbeat"}, corrId="c")
                while b"HeartbeatAck" not in await child.recv(decode=False):
                    pass
            assert len([each for each in caplog.messages if "no connections" in each]) < 10
            assert len(caplog.messages) < 10
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in waiting:
                each.close()
        async with fabric(hub) as node:
            assert node.describe()["attached"]


async def test_a_stop_does_not_wait_for_strangers() -> None:
    async with sentinel() as hub, connection(hub) as (reader, _):
        await eventually(lambda: strangers(hub) == 1)
        await hub.children.stop()
        with contextlib.suppress(ConnectionClosed):
            assert await reader.read() == b""
