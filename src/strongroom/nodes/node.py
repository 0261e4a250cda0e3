"""A node: an identity, the addresses bound on it, and the messages that it sends and receives."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol, Self

import msgspec
from msgspec import Raw

from strongroom.errors import NotStarted
from strongroom.messaging.address import REPLIES, Address
from strongroom.messaging.bindings import Bindings
from strongroom.messaging.calls import OutgoingCalls
from strongroom.messaging.delivery import AtMostOnce
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, NackCode, ReplyType
from strongroom.messaging.flow import Release
from strongroom.messaging.rpc import Handler
from strongroom.messaging.sender import Sender, WayOut, receiver_of
from strongroom.messaging.serving import IncomingCalls
from strongroom.nodes.at_least_once import AtLeastOnce
from strongroom.nodes.held import HOLD_SECONDS, HeldMessages
from strongroom.nodes.identity import NodeStores
from strongroom.nodes.uplink import Uplink
from strongroom.settings import Settings
from strongroom.storage.provider import StorageProvider, open_provider

log = logging.getLogger(__name__)


class Resident(Handler, Protocol):
    """A handler with a life: it starts before its address is bound, and ends before the node."""

    async def begin(self, node: Node, address: str) -> None:
        """Get ready. The node's storage is open."""

    async def end(self) -> None:
        """Let go of everything."""


class Servable(Protocol):
    """An agent, which keeps what its node needs of it apart from its author's names."""

    def __resident__(self) -> Resident:
        """What the node starts, calls and ends."""


class _Running(NamedTuple):
    """What a started node consists of."""

    settings: Settings
    storage: StorageProvider
    stores: NodeStores
    bindings: Bindings
    sender: Sender
    delivery: AtMostOnce
    outgoing: OutgoingCalls
    incoming: IncomingCalls
    held: HeldMessages


class Node:
    """One node. It attaches to the sentinel that FAME_DIRECT_ADMISSION_URL names, if that is set.

    >>> async with Node() as node:
    ...     await node.bind("echo@fame.fabric", handler)

    Args:
        settings: Its settings, if not those of the environment.
        storage: An open provider, if not that of the settings. The node does not close it.
    """

    def __init__(
        self, settings: Settings | None = None, *, storage: StorageProvider | None = None
    ) -> None:
        self._settings = settings
        self._given_storage = storage
        self._residents: list[Resident] = []
        self._exit_stack = AsyncExitStack()
        self._started: _Running | None = None

    @property
    def _running(self) -> _Running:
        if self._started is None:
            name = type(self).__name__
            raise NotStarted(f"The {name} has not started.", remedy=f"async with {name}(): around")
        return self._started

    @property
    def settings(self) -> Settings:
        """The settings with which this node runs."""
        return self._running.settings

    @property
    def storage(self) -> StorageProvider:
        """Where this node and its agents keep their data.

        Raises:
            NotStarted: The node has not started.
        """
        return self._running.storage

    @property
    def id(self) -> str:
        """The node's id, which it keeps as long as its storage."""
        return self._running.bindings.node_id

    @property
    def path(self) -> str:
        """The node's physical path: its id, after its sentinel's path."""
        return self._running.bindings.path

    @property
    def calls(self) -> OutgoingCalls:
        """The calls that this node makes."""
        return self._running.outgoing

    def __repr__(self) -> str:
        where = self._started.bindings.path if self._started else "not started"
        return f"<{type(self).__name__} {where}>"

    # --- life ---

    async def start(self) -> None:
        """Open the storage and join the fabric.

        Raises:
            SettingsError: A FAME_* variable cannot be understood.
            StorageError: The storage cannot be used.
            AttachFailed: The sentinel cannot be reached.
        """
        settings = self._settings or Settings.from_environment()
        show_envelopes(settings)
        async with AsyncExitStack() as opening:
            opening.callback(self._forget)
            running = self._started = await self._open(settings, opening)
            opening.callback(self._refuse_held)
            timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._refuse_held)
            opening.callback(timer.cancel)
            opening.push_async_callback(running.sender.way_out.stop)
            await running.sender.way_out.start()
            opening.callback(running.outgoing.stop)
            await running.delivery.start()
            opening.push_async_callback(self._end_residents)
            opening.push_async_callback(running.incoming.stop)
            if running.storage.needs_directory:
                from strongroom.admin.socket import admin_socket  # noqa: PLC0415  # loads SQLite

                await opening.enter_async_context(admin_socket(running.storage, self))
            self._exit_stack = opening.pop_all()

    async def _open(self, settings: Settings, opening: AsyncExitStack) -> _Running:
        storage = self._given_storage
        if storage is None:
            storage = await open_provider(settings.storage)
            opening.push_async_callback(storage.close)
        stores = await NodeStores.open(storage, settings.node_id)
        opening.push_async_callback(stores.record_clean_stop)
        bindings = Bindings(stores.node.node_id)
        sender = Sender(bindings, await self._open_way_out(settings, bindings, storage), self)
        opening.callback(sender.close)
        delivery = await _delivery(settings.delivery_profile, sender, storage)
        opening.push_async_callback(delivery.stop)
        return _Running(
            settings=settings,
            storage=storage,
            stores=stores,
            bindings=bindings,
            sender=sender,
            delivery=delivery,
            outgoing=OutgoingCalls(sender, delivery),
            incoming=IncomingCalls(sender, delivery, settings),
            held=HeldMessages(await stores.bindings()),
        )

    async def _open_way_out(
        self, settings: Settings, bindings: Bindings, _storage: StorageProvider
    ) -> WayOut:
        """Where messages go that are not for this node. A sentinel has children instead."""
        if settings.admission_url is None:
            return WayOut()
        return Uplink(settings, bindings, self)

    async def stop(self) -> None:
        """Leave the fabric and close the storage."""
        await self._exit_stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _end_residents(self) -> None:
        while self._residents:
            resident = self._residents.pop()
            try:
                await resident.end()
            except Exception:
                log.exception("%s raised while it was stopped", type(resident).__name__)

    def _forget(self) -> None:
        self._started = None

    def describe(self) -> dict[str, Any]:
        """What an operator sees of the node."""
        running = self._running
        return {
            "id": self.id,
            "path": self.path,
            "process": os.getpid(),
            "profile": running.settings.storage.profile,
            "sentinel": None,
            "attached": False,
            "bindings": sorted(running.bindings),
            **running.sender.way_out.describe(),
        }

    # --- names ---

    async def serve(self, agent: Servable, address: str) -> None:
        """Start an agent, then bind its address."""
        Address.parse(address)
        resident = agent.__resident__()
        await resident.begin(self, address)
        self._residents.append(resident)
        await self.bind(address, resident)
        if type(self._running.sender.way_out) is WayOut:
            log.info("only this process can call %s: FAME_DIRECT_ADMISSION_URL is not set", address)

    async def bind(self, address: str, handler: Handler) -> None:
        """Let `handler` answer at `address`.

        Raises:
            InvalidAddress: `address` is not an address.
            AttachRefused: Another node has the address.
            AttachFailed: The sentinel did not acknowledge it.
        """
        running, parsed = self._running, Address.parse(address)
        running.bindings.add(parsed, handler)
        try:
            await running.sender.way_out.announce(parsed, list(handler.capabilities))
        except BaseException:
            running.bindings.remove(parsed)
            raise
        await running.stores.add_binding(address, list(handler.capabilities))
        for message in running.held.pop(str(parsed)):
            self._deliver(*message)
        addresses = running.bindings.addresses_of(handler)
        running.delivery.resume(running.incoming, handler, addresses)

    async def unbind(self, address: str) -> None:
        """Stop answering at `address`."""
        running, parsed = self._running, Address.parse(address)
        running.bindings.remove(parsed)
        await running.stores.remove_binding(address)
        await running.sender.way_out.withdraw(parsed)

    async def send_message(self, address: str, message: Any) -> None:
        """Send a plain message, any JSON value, to the agent at `address`.

        Raises:
            NoRoute: Nothing is bound there, and there is no sentinel that might know it.
        """
        Address.parse(address)
        payload = Raw(msgspec.json.encode(message))
        await self._running.delivery.send(Envelope(to=address, frame=Data(payload=payload)))

    # --- events ---

    def on_message(self, envelope: Envelope, release: Release) -> None:
        """(NodeEvents) Hand a message to the agent, or the call, that it is for."""
        frame = envelope.frame
        if isinstance(frame, Data):
            self._deliver(envelope, frame, release)
            return
        release()
        if isinstance(frame, DeliveryAck) and not self._running.delivery.on_ack(frame):
            self._on_nack(envelope, frame)

    def on_link_lost(self, reason: str) -> None:
        """(NodeEvents) Fail, or send again, what was on its way."""
        self._running.delivery.on_link_lost()
        self._running.outgoing.on_link_lost(reason)

    def on_undelivered(self, nack: Envelope) -> None:
        """(NodeEvents) Tell another node that its message was not delivered."""
        self._running.sender.send_now(nack)

    def _deliver(self, envelope: Envelope, data: Data, release: Release) -> None:
        running = self._running
        handler = running.bindings.find(envelope)
        if handler is not None:
            running.delivery.receive(running.incoming, handler, envelope, data, release)
        elif (envelope.to or "").startswith(REPLIES):
            if envelope.rtype & ReplyType.ACK:
                running.sender.acknowledge(envelope, DeliveryAck(ok=True))
            running.outgoing.on_reply(envelope, data.payload, release)
        elif not running.held.hold((envelope, data, release)):
            release()
            reason = f"Unroutable to {receiver_of(envelope)}"
            nack = DeliveryAck(ok=False, code=NackCode.NO_ROUTE, reason=reason)
            running.sender.acknowledge(envelope, nack)

    def _on_nack(self, envelope: Envelope, ack: DeliveryAck) -> None:
        if not ack.ok:
            self._running.outgoing.on_nack(envelope, ack)
            self._running.incoming.cancel(envelope.corr_id)

    def _refuse_held(self) -> None:
        for message in self._running.held.pop_all():
            self._deliver(*message)


async def _delivery(profile: str, sender: Sender, storage: StorageProvider) -> AtMostOnce:
    if profile == "at-least-once":
        return await AtLeastOnce.open(sender, storage)
    return AtMostOnce(sender)


def show_envelopes(settings: Settings) -> None:
    """Write each envelope to the log, if FAME_SHOW_ENVELOPES asks for it."""
    logger = logging.getLogger("strongroom.envelopes")
    if settings.show_envelopes and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
