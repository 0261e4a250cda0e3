"""How hard a node tries to deliver a message: at most once.

`nodes/at_least_once.py` has the other policy, with the same methods.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, NamedTuple, Protocol

from strongroom.errors import FabricError
from strongroom.messaging.address import source_of
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, NackCode, ReplyType
from strongroom.messaging.flow import STALL_SECONDS, Release
from strongroom.messaging.places import Places
from strongroom.messaging.rpc import Handler
from strongroom.messaging.sender import Sender
from strongroom.messaging.unit import Unit
from strongroom.peers_log import peers_log

MAX_WAITING = 2048
"""Plain messages that wait for a place to run, shared fairly by those who send them."""

log = peers_log(__name__)


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
        self._waiting = Places(MAX_WAITING)

    async def start(self) -> None:
        """Continue what the last run of this node left."""

    async def stop(self) -> None:
        """End all work."""

    async def send(self, envelope: Envelope) -> None:
        """Send a request or a plain message, and return when it has left."""
        await self.sender.send(envelope)

    async def send_message(self, envelope: Envelope) -> DeliveryAck | None:
        """Send a plain message; the other policy waits for the acknowledgement, and returns it."""
        await self.send(envelope)
        return None

    def settle(self, message_id: str) -> None:
        """A message has its answer, or nobody waits for the answer any more."""

    def on_ack(self, ack: DeliveryAck) -> bool:  # noqa: ARG002 - the other policy uses it
        """Use an acknowledgement. False means that it is for the call to handle."""
        return False

    def on_link_lost(self) -> None:
        """Messages that were on their way may be lost."""

    def receive(self, runner: Runner, work: Work) -> None:
        """Acknowledge a message if its sender asks for that, and run it."""
        envelope, is_plain = work.envelope, not work.envelope.rtype & ReplyType.CALL
        source = source_of(envelope.reply_to)
        if runner.refuses(envelope) or (
            is_plain and not has_room(self._waiting, source, envelope, self.sender)
        ):
            work.release()
            return
        if is_plain:
            self._waiting.take(source)
            work = work._replace(release=partial(self._release, source, work.release))
        if envelope.rtype & ReplyType.ACK:
            self.sender.acknowledge(envelope, DeliveryAck(ok=True))
        runner.start(work)

    def _release(self, source: str, release: Release) -> None:
        self._waiting.leave(source)
        release()

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


def has_room(places: Places, source: str, envelope: Envelope, sender: Sender) -> bool:
    """Whether a message of `source` may wait. If not, its sender is told, if that is possible."""
    if places.has_room(source):
        return True
    log.warning("a message of %s was refused: too many wait", source or "an unknown node")
    reason = f"{places.taken} messages wait on the agent's node; this one was refused."
    nack = DeliveryAck(ok=False, code=NackCode.BUSY, reason=reason)
    sender.acknowledge(envelope, nack)
    return False
