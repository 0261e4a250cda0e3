"""A child that sends whatever may do harm: all that it does follows from one seed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

from strongroom import Sentinel
from support.peer import attach, masked, upgrade

NAMES = {
    "AddressBind": ("address",),
    "AddressUnbind": ("address",),
    "CapabilityAdvertise": ("address", "capabilities"),
    "CapabilityWithdraw": ("address", "capabilities"),
}
REQUIRED: dict[str, tuple[str, ...]] = {
    **NAMES,
    **{f"{name}Ack": ("ok",) for name in (*NAMES, "NodeAttach", "NodeHeartbeat")},
    "NodeAttach": ("systemId",),
    "NodeHeartbeat": (),
    "KeyRequest": (),
    "": (),
    "Data": (),
    "DeliveryAck": ("ok",),
    "CreditUpdate": ("flowId", "credits"),
}
"""The types of frames, with the fields that each must have."""
ENVELOPE = ("id", "sid", "traceId", "to", "replyTo", "rtype", "corrId", "flowId", "flowFlags")
FRAME = ("address", "capabilities", "systemId", "ok", "code", "reason", "refId", "credits")


class HostileChild:
    """Makes up steps: bytes to be sent on a link as they are.

    Args:
        seed: What decides all of them.
        hub_path: The sentinel's path.
        targets: Addresses of others, which it tries to take, call and answer.
    """

    def __init__(self, seed: int, hub_path: str, targets: list[str]) -> None:
        self._random = Random(seed)
        own = [f"x@{hub_path}/hostile", "own@fame.fabric"]
        self._places = [*targets, *own, "x@y", "*@*", "a@*.fame.fabric", f"x@{hub_path}", "", "@"]
        self._ids = ["a", "b", "c", "", "x" * 256, "\0", "\u202e\n"]
        self._odd_values: list[Any] = [
            None,
            1,
            -1,
            2**80,
            0.5,
            [],
            {},
            True,
            "x" * 257,
            "x" * 9999,
            "\ud800",
        ]

    def steps(self, number: int) -> Iterator[bytes]:
        """The frames of `number` steps, most of them well-formed WebSocket messages."""
        kinds = [self._message, self._flood, self._odd, self._raw]
        for _ in range(number):
            [kind] = self._random.choices(kinds, [12, 3, 3, 1])
            yield kind()

    def _message(self) -> bytes:
        return masked(1 + self._random.randrange(2), self._envelope())

    def _envelope(self) -> bytes:
        some = self._random.sample(ENVELOPE, self._random.randrange(len(ENVELOPE) + 1))
        fields: dict[str, Any] = {name: self._value(name) for name in some}
        kind = self._random.choice([*REQUIRED, *NAMES, *NAMES, *["Data"] * 6])
        more = self._random.sample(FRAME, self._random.randrange(3))
        frame = {name: self._value(name) for name in (*REQUIRED[kind], *more)}
        frame["type"] = kind
        if kind == "Data":
            frame["payload"] = self._payload(fields.get("corrId"))
        return json.dumps({**fields, "frame": frame}).encode()

    def _value(self, name: str) -> Any:
        if self._random.random() < 0.01:  # most of these cost it its link
            return self._random.choice(self._odd_values)
        if name in {"to", "replyTo", "address"}:
            return self._random.choice(self._places)
        if name == "capabilities":
            length = self._random.choice([0, 1, 2, 3, 64])
            return [self._random.choice(self._ids[:4]) + str(each) for each in range(length)]
        if name in {"rtype", "flowFlags", "credits"}:
            return self._random.choice([0, 1, 2, 4, 7, 255, -5, 10**9])
        if name == "ok":
            return self._random.random() < 0.5
        return self._random.choice(self._ids)

    def _payload(self, corr_id: Any) -> Any:
        method = self._random.choice(["echo", "add", "count", "hang", "nothing", "__init__"])
        deep: Any = 1
        for _ in range(self._random.choice([1, 50, 500])):
            deep = [deep]
        value = self._random.choice([1, "x" * 100_000, deep, {"a": {}}, list(range(10_000))])
        request = {"jsonrpc": "2.0", "id": corr_id, "method": method, "params": {"value": value}}
        answer = {"jsonrpc": "2.0", "id": corr_id, "result": value}
        return self._random.choice([request, request, answer, value, None])

    def _flood(self) -> bytes:
        """The same message many times in one write, perhaps each with a flow to itself."""
        number = self._random.choice([10, 100, 1000])
        message = self._envelope()[:2000]
        if self._random.random() < 0.5:
            return masked(2, message) * number
        body = message[1:]
        return b"".join(masked(2, b'{"flowId":"f%d",' % each + body) for each in range(number))

    def _odd(self) -> bytes:
        """What is allowed in a WebSocket and rarely seen."""
        data = self._envelope()
        return self._random.choice(
            [
                masked(9, b"ping" * 20) * 50,
                masked(10, b"nobody asked"),
                masked(2, data[:10], fin=False) + masked(9, b"") + masked(0, data[10:]),
                b"".join(masked(2 * (not each), b"x", fin=False) for each in range(2000)),
                masked(2, b""),
                masked(8, (1000).to_bytes(2) + b"bye"),
            ]
        )

    def _raw(self) -> bytes:
        """What is not allowed in a WebSocket, or in JSON."""
        data = self._envelope()
        place = self._random.randrange(len(data))
        return self._random.choice(
            [
                self._random.randbytes(self._random.choice([1, 100, 10_000])),
                masked(2, data[:place]),
                masked(2, data[:place] + self._random.randbytes(3) + data[place:]),
                masked(2, b"[" * 100_000),
                masked(2, b"x" * 100, size=2**40),
                masked(self._random.randrange(16), data, fin=False),
                b"\x82" + bytes((len(data[:100]),)) + data[:100],
                masked(8, b"\x00"),
            ]
        )


async def play(hub: Sentinel, steps: list[bytes], *, reads: bool) -> None:
    """Send steps on a link that is attached, until they are over or the link is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    try:
        with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            writer.write(upgrade("hostile"))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(attach("hostile"))
            await reader.read(1)
            reading = asyncio.create_task(_read_all(reader)) if reads else None
            for step in steps:
                writer.write(step)
                async with asyncio.timeout(0.2):  # the sentinel may have stopped reading
                    await writer.drain()
            if reading is not None:
                writer.write(masked(8, (1000).to_bytes(2)))
                async with asyncio.timeout(1):
                    await reading
    finally:
        writer.transport.abort()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(65536):
            pass


async def flood(hub: Sentinel, messages: bytes) -> None:
    """Send the same messages on a link that is attached, as fast as they are read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    try:
        writer.write(upgrade("hostile") + attach("hostile"))
        reading = asyncio.create_task(_read_all(reader))
        while not reading.done():
            writer.write(messages)
            await writer.drain()
    finally:
        writer.transport.abort()
