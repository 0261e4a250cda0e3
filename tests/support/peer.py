"""A bare WebSocket peer, which sends exactly what a test gives it."""

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
