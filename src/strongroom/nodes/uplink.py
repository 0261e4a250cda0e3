"""A node's link to its sentinel: opened at the start, watched, and opened again when it breaks."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any, TypeVar

from strongroom.admission.handshake import attach_request, membership
from strongroom.admission.local_token import find_token
from strongroom.errors import AttachFailed, AttachRefused, ProtocolError
from strongroom.messaging.address import Address, new_id
from strongroom.messaging.bindings import Bindings
from strongroom.messaging.envelope import (
    ROUTED,
    AddressBind,
    AddressBindAck,
    AddressUnbind,
    AddressUnbindAck,
    CapabilityAdvertise,
    CapabilityAdvertiseAck,
    ControlAck,
    Envelope,
    Frame,
    NodeAttachAck,
    NodeHeartbeat,
    NodeHeartbeatAck,
    ReplyType,
)
from strongroom.messaging.flow import Channel, Release
from strongroom.messaging.link import dial
from strongroom.messaging.sender import NodeEvents, WayOut
from strongroom.peers_log import peers_log
from strongroom.settings import Settings

ANSWER_SECONDS = 10.0
HEARTBEAT_SECONDS = 15.0
FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 1.0
ROUTES_RETURN_SECONDS = 10.0
"""Seconds after a sentinel's restart during which a missing route is retried."""

log = peers_log(__name__)

Ack = TypeVar("Ack", bound=ControlAck)


class Uplink(WayOut):
    """The way out of a node that has a sentinel."""

    def __init__(self, settings: Settings, bindings: Bindings, events: NodeEvents) -> None:
        assert settings.admission_url is not None
        self._sentinel_url = settings.admission_url
        self._url = f"{settings.admission_url.rstrip('/')}/{bindings.node_id}"
        self._token = settings.admission_token
        self._attempts = settings.max_initial_attempts
        self._bindings = bindings
        self._events = events
        self._channel: Channel | None = None
        self._up = asyncio.Event()
        self._attention = asyncio.Event()
        self._epoch: str | None = None
        self._announced_epoch: str | None = None
        self._epoch_changed = float("-inf")
        self._requests: dict[str, tuple[str, asyncio.Future[ControlAck]]] = {}
        self._keeper: asyncio.Task[None] | None = None

    # --- the way out ---

    def channel_to(self, envelope: Envelope) -> Channel | None:  # noqa: ARG002 - all go up
        return self._channel if self._up.is_set() else None

    async def wait_for_channel(self) -> Channel:
        await self._up.wait()
        assert self._channel is not None
        return self._channel

    def may_return(self) -> bool:
        """Whether the sentinel has restarted and its children may still be rebinding."""
        return asyncio.get_running_loop().time() < self._epoch_changed + ROUTES_RETURN_SECONDS

    async def start(self) -> None:
        """Attach, and stay attached from then on.

        Raises:
            AttachFailed: FAME_SESSION_MAX_INITIAL_ATTEMPTS attempts failed (0: never raised).
            AttachRefused: The sentinel refused this node.
        """
        attempt, delay = 1, FIRST_DELAY_SECONDS
        while True:
            try:
                await self._attach()
                break
            except AttachRefused:
                raise
            except AttachFailed as error:
                if attempt == self._attempts:
                    raise
                log.warning("%s", error)
            attempt += 1
            delay = await _back_off(delay)
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Close the link."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        channel, self._channel = self._channel, None  # so that this does not count as a loss
        if channel is not None:
            channel.link.close()
            await channel.link.closed.wait()

    async def announce(self, address: Address, capabilities: list[str]) -> None:
        """Bind an address at the sentinel.

        Raises:
            AttachRefused: Another node has the address.
            AttachFailed: The sentinel did not answer in time.
        """
        ack = await self._request(AddressBind(address=str(address)), AddressBindAck)
        if not ack.ok:
            raise AttachRefused(f"The sentinel did not bind {address}: {ack.reason or ack.code}.")
        instance = str(self._bindings.instance(address))
        advertise = CapabilityAdvertise(capabilities=capabilities, address=instance)
        await self._request(advertise, CapabilityAdvertiseAck)

    async def withdraw(self, address: Address) -> None:
        await self._request(AddressUnbind(address=str(address)), AddressUnbindAck)

    def describe(self) -> dict[str, Any]:
        """The sentinel, and whether the link to it is up."""
        return {"sentinel": self._sentinel_url, "attached": self._up.is_set()}

    # --- requests to the sentinel ---

    async def _request(self, frame: Frame, kind: type[Ack]) -> Ack:
        if self._channel is None:
            raise AttachFailed("The link to the sentinel is down.", remedy="again, once it is up")
        return await self._request_on(self._channel, frame, kind)

    async def _request_on(self, channel: Channel, frame: Frame, kind: type[Ack]) -> Ack:
        envelope = Envelope(corr_id=new_id(), rtype=ReplyType.ACK, frame=frame)
        answer: asyncio.Future[ControlAck] = asyncio.get_running_loop().create_future()
        self._requests[envelope.id] = (envelope.corr_id or "", answer)
        what = type(frame).__name__
        try:
            channel.send_now(envelope)
            async with asyncio.timeout(ANSWER_SECONDS):
                ack = await answer
        except TimeoutError:
            raise AttachFailed(
                f"{self._url} did not answer {what} within {ANSWER_SECONDS:.0f} seconds."
            ) from None
        finally:
            del self._requests[envelope.id]
        if not isinstance(ack, kind):
            raise AttachFailed(f"{self._url} answered {what} with {type(ack).__name__}.")
        return ack

    # --- events ---

    def on_envelope(
        self, channel: Channel, envelope: Envelope, _data: bytes, release: Release
    ) -> None:
        """(ChannelOwner) Use the sentinel's acknowledgements; the node gets all other messages."""
        frame = envelope.frame
        if isinstance(frame, ROUTED):
            self._events.on_message(envelope, release)
            return
        release()
        if not isinstance(frame, ControlAck):
            return
        if isinstance(frame, NodeHeartbeatAck):
            self._see_epoch(frame.routing_epoch)
        elif isinstance(frame, NodeAttachAck) and frame.ok and frame.assigned_path is not None:
            # Now, and not when the waiting task runs: the next message in the same read is for
            # our new path, and may need an answer.
            self._bindings.path = frame.assigned_path
            self._channel = channel
            self._up.set()
        corr_id, answer = self._requests.get(frame.ref_id or "", ("", None))
        if answer is not None and not answer.done() and corr_id == envelope.corr_id:
            answer.set_result(frame)

    def on_malformed(self, _channel: Channel, error: ProtocolError) -> None:
        """(ChannelOwner) Drop it: another node wrote it, and the sentinel passed it on."""
        log.warning("a message was dropped: %s", error)

    def on_channel_closed(self, channel: Channel, reason: str) -> None:
        """(ChannelOwner) Fail what waits for the sentinel, and have the link opened again."""
        for _, answer in self._requests.values():
            if not answer.done():
                answer.set_exception(AttachFailed(f"{self._url} closed the link: {reason}."))
        if channel is self._channel:
            self._channel = None
            self._up.clear()
            self._attention.set()
            log.warning("the link to the sentinel was lost: %s", reason)
            self._events.on_link_lost(f"the link to the sentinel was lost ({reason})")

    def _see_epoch(self, epoch: str | None) -> None:
        if epoch is None or epoch == self._epoch:
            return
        if self._epoch is not None:
            self._epoch_changed = asyncio.get_running_loop().time()
            self._attention.set()
        self._epoch = epoch

    # --- the link ---

    async def _attach(self) -> None:
        link = await dial(self._url, self._token or find_token(self._url))
        channel = Channel(link, self)
        try:
            ack = await self._request_on(
                channel, attach_request(self._bindings.node_id), NodeAttachAck
            )
            place = membership(ack)
            self._see_epoch(place.epoch)
            await self._announce_all()
        except BaseException:
            self._channel = None
            self._up.clear()
            link.close()
            raise
        log.info("attached to %s as %s", place.sentinel_id, place.path)

    async def _announce_all(self) -> None:
        """Bind all our addresses, if the sentinel has forgotten them: then its epoch is new.

        An address that another node has taken meanwhile is tried again with each heartbeat.
        """
        if self._announced_epoch == self._epoch:
            return
        epoch, refused = self._epoch, False
        for address, handler in self._bindings.announced():
            try:
                await self.announce(address, list(handler.capabilities))
            except AttachRefused as error:
                log.warning("%s", error)
                refused = True
        if not refused:
            self._announced_epoch = epoch

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._attention.wait()
            self._attention.clear()
            if self._channel is None:
                await self._attach_again()
                continue
            self._channel.send_now(Envelope(corr_id=new_id(), frame=NodeHeartbeat()))
            try:
                await self._announce_all()
            except AttachFailed as error:
                log.warning("not all addresses were bound again: %s", error)

    async def _attach_again(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                await self._attach()
            except AttachFailed as error:
                log.info("not attached: %s", error)
                delay = await _back_off(delay)
            else:
                return


async def _back_off(delay: float) -> float:
    await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
    return min(2 * delay, LAST_DELAY_SECONDS)
