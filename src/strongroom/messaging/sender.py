"""The way out of a node: which channel and which flow a message takes."""

from __future__ import annotations

from typing import Any, Protocol

from strongroom.errors import FabricError, NoRoute, ProtocolError
from strongroom.messaging.address import REPLIES, SYSTEM, Address, new_id, source_id
from strongroom.messaging.bindings import Bindings
from strongroom.messaging.envelope import DeliveryAck, Envelope, NackCode, ReplyType, encode
from strongroom.messaging.flow import Channel, Release, ends_flow
from strongroom.messaging.link import Loopback
from strongroom.messaging.listeners import EventListeners
from strongroom.peers_log import peers_log

MAX_DESTINATIONS = 512
FLOWS_PER_DESTINATION = 4
MAX_WAITING_ACKS = 1024

log = peers_log(__name__)


class NodeEvents(Protocol):
    """What the links of a node report to it."""

    def on_message(self, envelope: Envelope, release: Release) -> None:
        """A message for this node arrived."""

    def on_link_lost(self, reason: str) -> None:
        """The link to the sentinel broke, and is being opened again."""

    def on_undelivered(self, nack: Envelope) -> None:
        """A message that passed through this node was not delivered. `nack` tells its sender."""


class WayOut:
    """Where a node sends what is not for itself: nowhere, if it stands alone.

    A node with a sentinel has an `Uplink`, and a sentinel has `Children`.
    """

    def channel_to(self, envelope: Envelope) -> Channel | None:
        """The channel that leads to the receiver of a message; None while the link is down.

        Raises:
            NoRoute: The receiver is unknown or away.
        """
        raise NoRoute(
            f"Nothing on this node answers at {receiver_of(envelope)}.",
            remedy="FAME_DIRECT_ADMISSION_URL, which names the sentinel, if it is on another node",
            code=NackCode.NO_ROUTE,
        )

    async def wait_for_channel(self) -> Channel:
        """The channel, once the link is up again."""
        raise NotImplementedError

    def may_return(self) -> bool:
        """Whether a missing route may come back soon, so that a caller should try again."""
        return False

    async def start(self) -> None:
        """Open the links."""

    async def stop(self) -> None:
        """Close the links."""

    async def announce(self, address: Address, capabilities: list[str]) -> None:
        """Make an address of this node known to others."""

    async def withdraw(self, address: Address) -> None:
        """Make it known that an address of this node is no longer bound."""

    def describe(self) -> dict[str, Any]:
        """What an operator sees of it."""
        return {}


class Sender:
    """Sends the messages of a node, to itself or through its way out."""

    def __init__(
        self,
        bindings: Bindings,
        way_out: WayOut,
        events: NodeEvents,
        listeners: EventListeners,
    ) -> None:
        self.bindings = bindings
        self.way_out = way_out
        self._events = events
        self._listeners = listeners
        self._loopback = Channel(Loopback(), self)
        self._inbox = f"{REPLIES}{new_id()}"
        self._flows: dict[str, list[str]] = {}
        self._turn = 0

    @property
    def reply_to(self) -> str:
        """The address to which answers to this node's calls go."""
        return f"{self._inbox}@{self.bindings.path}"

    @property
    def sys_address(self) -> str:
        """The address to which acknowledgements of this node's messages go."""
        return f"{SYSTEM}@{self.bindings.path}"

    def may_return(self, address: str | None) -> bool:
        """Whether an address that is unknown now may soon be known again, after a restart."""
        return address in self.bindings.awaited or self.way_out.may_return()

    async def send(self, envelope: Envelope, timeout: float | None = None) -> None:
        """Send a message, and return when it has left this node.

        Args:
            envelope: The message; the sender's id and a flow are written into it.
            timeout: Seconds to wait for the receiver to read. None: as long as it takes.

        Raises:
            NoRoute: The receiver is unknown, and there is no sentinel that might know it.
            StreamStalled: The receiver read nothing for `timeout` seconds.
            MessageTooLarge: The message is larger than a link can carry.
        """
        if self._listeners.registered and not self.bindings.is_here(envelope):
            left = await self._listeners.leaving(envelope)
            if left is None:
                return
            envelope = left
        channel = self._channel_to(envelope)
        if channel is None:
            channel = await self.way_out.wait_for_channel()
        envelope.sid = source_id(self.bindings.path)
        flow_id = envelope.flow_id = envelope.flow_id or self._flow_to(envelope, channel)
        await channel.send(flow_id, encode(envelope), timeout)
        if ends_flow(envelope):
            channel.end_flow(flow_id)

    def send_now(self, envelope: Envelope) -> bool:
        """Send an acknowledgement, or queue it until it has credit; do not wait for it.

        It is lost while the link is down, or if MAX_WAITING_ACKS wait for the same receiver.
        Returns False if nothing leads to the receiver.
        """
        if self._listeners.registered and not self.bindings.is_here(envelope):
            self._listeners.tasks.start(self._send_heard(envelope))
            return True
        return self._send_now(envelope)

    async def _send_heard(self, envelope: Envelope) -> None:
        left = await self._listeners.leaving(envelope)
        if left is not None:
            self._send_now(left)

    def _send_now(self, envelope: Envelope) -> bool:
        try:
            channel = self._channel_to(envelope)
            if channel is not None:
                envelope.sid = source_id(self.bindings.path)
                flow_id = envelope.flow_id = self._flow_to(envelope, channel)
                if channel.backlog(flow_id) < MAX_WAITING_ACKS:
                    channel.enqueue(flow_id, encode(envelope))
                if ends_flow(envelope):
                    channel.end_flow(flow_id)
        except FabricError as error:
            log.debug("not sent: %s", error)
            return not isinstance(error, NoRoute)
        return True

    def acknowledge(self, request: Envelope, ack: DeliveryAck) -> None:
        """Tell the sender of `request` whether it was delivered, if the sender can be told."""
        if request.reply_to is None or request.corr_id is None:
            return
        ack.ref_id = request.id
        self.send_now(
            Envelope(
                trace_id=request.trace_id,
                to=request.reply_to,
                corr_id=request.corr_id,
                frame=ack,
            )
        )

    def close(self) -> None:
        """Stop delivering to this node itself."""
        self._loopback.link.close()

    def on_envelope(
        self, _channel: Channel, envelope: Envelope, _data: bytes, release: Release
    ) -> None:
        """(ChannelOwner) A message from this node to itself."""
        self._events.on_message(envelope, release)

    def on_malformed(self, _channel: Channel, error: ProtocolError) -> None:
        """(ChannelOwner) One that this node sent to itself; its call ends at its deadline."""
        log.warning("a message of this node to itself was dropped: %s", error)

    def on_channel_closed(self, _channel: Channel, _reason: str) -> None:
        """(ChannelOwner) The node is stopping."""

    def _channel_to(self, envelope: Envelope) -> Channel | None:
        if self.bindings.is_here(envelope):
            return self._loopback
        return self.way_out.channel_to(envelope)

    def _flow_to(self, envelope: Envelope, channel: Channel) -> str:
        # Each destination has flows to itself, so that one that stops reading holds up no other.
        # Calls and answers rotate over them; plain messages keep their order on the first, and
        # acknowledgements have the last.
        corr_id = envelope.corr_id
        if corr_id is not None and channel.backlog(corr_id):
            return corr_id  # a stream's end must not overtake the items that wait
        destination = envelope.to or ""
        flows = self._flows.get(destination)
        if flows is None:
            if len(self._flows) >= MAX_DESTINATIONS:
                self._flows.clear()
            flows = self._flows[destination] = [new_id() for _ in range(FLOWS_PER_DESTINATION + 1)]
        if isinstance(envelope.frame, DeliveryAck):
            return flows[-1]
        if corr_id is None or envelope.rtype == ReplyType.ACK:
            return flows[0]
        self._turn = (self._turn + 1) % FLOWS_PER_DESTINATION
        return flows[self._turn]


def receiver_of(envelope: Envelope) -> str:
    """How to name the receiver of a message to a person."""
    return envelope.to or f"any agent with {', '.join(envelope.capabilities or ())}"
