"""What at-least-once delivery stores, and in which namespaces."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel

from strongroom.errors import ProtocolError
from strongroom.messaging.envelope import Data, Envelope, decode

OUTBOX = "__delivery_outbox"
INBOX = "__delivery_inbox"
DEAD_LETTERS = "__delivery_dead_letters"


class SentMessage(BaseModel):
    """A message that has no answer yet."""

    envelope: str


class ReceivedMessage(BaseModel):
    """A message that was acknowledged, and its answer once there is one."""

    envelope: str
    is_done: bool = False
    answer: str | None = None
    attempts: int = 1
    """How often it has begun to run."""
    reasons: list[str] = []
    """Why it was not handled, one for each attempt that failed."""


class Direction(StrEnum):
    """Which way a message went."""

    SENT = "sent"
    RECEIVED = "received"


class DeadLetter(BaseModel):
    """A message that was set aside, since it could not be handled or delivered."""

    direction: Direction
    envelope: str
    attempts: int = 0
    reasons: list[str] = []


def read_message(text: str) -> tuple[Envelope, Data]:
    """The message in a record, and its data.

    Raises:
        ProtocolError: It cannot be read.
    """
    envelope = decode(text.encode())
    if not isinstance(envelope.frame, Data):
        raise ProtocolError("Not a message: it has no data")
    return envelope, envelope.frame
