"""Sessions of real peers, captured and replayed: our sentinel answers as theirs did.

Each line of a capture is what one peer (`who`) did: it dialled, sent, got, or closed.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from strongroom.messaging.envelope import CreditUpdate, decode
from support.fabrics import sentinel

CAPTURES = sorted((Path(__file__).parent.parent / "data/captures").glob("*.jsonl"))
PER_LINK = ("seqId", "flowFlags", "flowId")
"""Fields that each link numbers or names by itself."""
INVENTED = ("id", "sid", "traceId", "to", "routingEpoch")


def steps(capture: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capture.read_text().splitlines()]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_every_message_of_a_real_peer_is_understood(capture: Path) -> None:
    for step in steps(capture):
        message = step.get("sent") or step.get("got")
        if message is not None:
            envelope = decode(json.dumps(message).encode())
            assert type(envelope.frame).__name__ == message["frame"]["type"]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
async def test_our_sentinel_answers_as_the_real_one(capture: Path) -> None:
    session = steps(capture)
    async with sentinel(node_id=sentinel_id(session)) as hub:
        links: dict[str, ClientConnection] = {}
        for step in session:
            who = step["who"]
            if "dial" in step:
                links[who] = await connect(f"ws://127.0.0.1:{hub.port}{step['dial']}")
            elif "sent" in step:
                await links[who].send(json.dumps(step["sent"]).encode())
            elif "got" in step and step["got"]["frame"]["type"] != "CreditUpdate":
                expected, got = step["got"], await receive(links[who])
                assert comparable(got, expected) == comparable(expected, expected)
            elif "close" in step:
                await links[who].close()


def sentinel_id(session: list[dict[str, Any]]) -> str:
    answers = (step["got"]["frame"] for step in session if "got" in step)
    return str(next(frame["targetSystemId"] for frame in answers if "targetSystemId" in frame))


async def receive(link: ClientConnection) -> dict[str, Any]:
    """The next message that is not about credit, which each end gives whenever it wants."""
    async with asyncio.timeout(2):
        while True:
            data = await link.recv()
            assert isinstance(data, bytes), "FAME's messages are binary"
            envelope = decode(data)
            if not isinstance(envelope.frame, CreditUpdate):
                message: dict[str, Any] = json.loads(data)
                return message


def comparable(message: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    frame = expected["frame"]
    kept = {key: value for key, value in message.items() if key not in PER_LINK}
    is_forwarded = frame["type"] in {"Data", "DeliveryAck"} and frame.get("code") is None
    if is_forwarded:
        return kept
    kept = {key: value for key, value in kept.items() if key not in INVENTED or key == "to"}
    return kept | {"frame": without(INVENTED, message["frame"])}


def without(keys: tuple[str, ...], mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}
