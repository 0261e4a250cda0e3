"""A bare WebSocket peer, which sends exactly what a test gives it, in messages or in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from strongroom.nodes.sentinel import Sentinel

PATH = "/fame/v1/attach/ws/downstream/"


@asynccontextmanager
async def raw_child(
    hub: Sentinel, name: str = "raw", *, attach: bool = True
) -> AsyncIterator[ClientConnection]:
    """A link to the sentinel under a node's name, attached unless `attach` is false."""
    async with connect(f"ws://127.0.0.1:{hub.port}{PATH}{name}", close_timeout=1) as link:
        if attach:
            await say(link, "1", {"type": "NodeAttach", "systemId": name}, corrId="c")
            assert json.loads(await link.recv())["frame"]["ok"]
        yield link


async def say(link: ClientConnection, id_: str, frame: dict[str, Any], **fields: Any) -> None:
    """Send an envelope with this id and frame."""
    await link.send(json.dumps({"id": id_, **fields, "frame": frame}).encode())


async def close_code(link: ClientConnection) -> tuple[int | None, str | None]:
    """Read until the sentinel closes the link, and return its code and reason."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(5):
            while True:
                await link.recv()
    return link.close_code, link.close_reason


# --- bytes, for a peer that is no WebSocket client ---


def masked(opcode: int, data: bytes, *, fin: bool = True, size: int | None = None) -> bytes:
    """A WebSocket frame of a client; `size` is the length that its head claims."""
    length = len(data) if size is None else size
    first = (0x80 if fin else 0) | opcode
    if length < 126:
        head = bytes((first, 0x80 | length))
    elif length < 65536:
        head = bytes((first, 0x80 | 126)) + length.to_bytes(2)
    else:
        head = bytes((first, 0x80 | 127)) + length.to_bytes(8)
    return head + bytes(4) + data  # a mask of zeros changes nothing


def upgrade(name: str) -> bytes:
    """The request for a link under a node's name."""
    return (
        f"GET {PATH}{name} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def attach(name: str) -> bytes:
    """The first message on a link."""
    frame = {"type": "NodeAttach", "systemId": name}
    return masked(2, json.dumps({"id": "1", "corrId": "c", "frame": frame}).encode())
