"""How hard a node tries to deliver a message: at most once.

`nodes/at_least_once.py` has the other policy, with the same methods.
"""

from __future__ import annotations

import logging
from typing import ClassVar, NamedTuple, Protocol

from strongroom.errors import FabricError
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, ReplyType
from strongroom.messaging.flow import STALL_SECONDS, Release
from strongroom.messaging.rpc import Handler
from strongroom.messaging.sender import Sender
from strongroom.messaging.unit import Unit

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """A message for a handler. `release` is called when it begins to run."""

    handler: Handler
    envelope: Envelope
    data: Data
    release: Release


class Runner(Protocol):
    """What runs requests: `serving.IncomingCalls`."""

    def refuses(self, envelope: Envelope) -> bool:
        """Whether a call cannot run now. Its caller is told why."""

    def start(self, work: Work) -> None:
        """Run a request, or take a plain message."""


class AtMostOnce:
    """Sends each message once. A message that gets lost stays lost, and its caller is told."""

    keeps_calls: ClassVar[bool] = False
    """Whether a call outlives the link on which it was sent."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    async def start(self) -> None:
        """Continue what the last run of this node left."""

    async def stop(self) -> None:
        """End all work."""

    async def send(self, envelope: Envelope) -> None:
        """Send a request or a plain message, and return when it has left."""
        await self.sender.send(envelope)

    def settle(self, message_id: str) -> None:
        """A message has its answer, or nobody waits for the answer any more."""

    def on_ack(self, ack: DeliveryAck) -> bool:  # noqa: ARG002 - the other policy uses it
        """Use an acknowledgement. False means that it is for the call to handle."""
        return False

    def on_link_lost(self) -> None:
        """Messages that were on their way may be lost."""

    def receive(self, runner: Runner, work: Work) -> None:
        """Acknowledge a message if its sender asks for that, and run it."""
        if runner.refuses(work.envelope):
            work.release()
            return
        if work.envelope.rtype & ReplyType.ACK:
            self.sender.acknowledge(work.envelope, DeliveryAck(ok=True))
        runner.start(work)

    async def record_answer(
        self,
        request: Envelope,  # noqa: ARG002 - the other policy stores both
        answer: Envelope | None,  # noqa: ARG002
        unit: Unit | None = None,
    ) -> None:
        """Called before the answer to a request is sent; with None after a plain message.

        Raises:
            StorageError: Nothing of the unit was stored.
        """
        if unit is not None:
            await unit.store()
            for message in unit.messages:
                try:
                    await self.sender.send(message, STALL_SECONDS)
                except FabricError as error:
                    log.warning("a message to %s was not sent: %s", message.to, error)

    def on_failure(self, runner: Runner, work: Work, reason: str) -> None:
        """The handler of a plain message raised."""

    def resume(self, runner: Runner) -> None:
        """Run what was acknowledged in the last run but not finished, and has a handler now."""
