"""A node: an identity, the addresses bound on it, and the messages that it sends and receives."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from msgspec import Raw

from strongroom.errors import InvalidArguments, NotStarted
from strongroom.messaging.address import REPLIES, Address, FameAddress
from strongroom.messaging.bindings import Bindings
from strongroom.messaging.calls import OutgoingCalls
from strongroom.messaging.delivery import AtMostOnce, Work
from strongroom.messaging.envelope import (
    Data,
    DeliveryAck,
    Envelope,
    NackCode,
    ReplyType,
)
from strongroom.messaging.flow import Release
from strongroom.messaging.listeners import EventListeners, NodeEventListener
from strongroom.messaging.places import own_place
from strongroom.messaging.rpc import Handler
from strongroom.messaging.sender import Sender, WayOut, receiver_of
from strongroom.messaging.serving import IncomingCalls
from strongroom.messaging.values import MAX_PROBLEMS, Codec, Unfit, listed
from strongroom.nodes.held import HOLD_SECONDS, HeldMessages
from strongroom.nodes.identity import NodeStores
from strongroom.nodes.uplink import Uplink
from strongroom.root_config import RootConfig, node_settings
from strongroom.settings import Settings
from strongroom.storage.provider import StorageProvider, open_provider

_ANYTHING = Codec(Any)

log = logging.getLogger(__name__)


class Resident(Handler, Protocol):
    """A handler with a life: it starts before its address is bound, and ends before the node."""

    @property
    def name(self) -> str:
        """The name under which it is served if no other is given."""

    async def begin(self, node: Node, address: str) -> None:
        """Get ready. The node's storage is open."""

    async def end(self) -> None:
        """Let go of everything."""


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
        root_config: Its settings in Naylence's form: see `root_config.py`.
        storage: An open provider, if not that of the settings. The node does not close it.
    """

    always_listens: ClassVar[bool] = False
    """Whether nodes of this class are sentinels, whatever their settings say."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        root_config: RootConfig = None,
        storage: StorageProvider | None = None,
    ) -> None:
        if settings is not None and root_config is not None:
            raise ValueError("Give either settings or root_config")
        self._settings = settings
        self._root_config = root_config
        self._given_storage = storage
        self._residents: dict[Address, Resident] = {}
        self._listeners = EventListeners(self)
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
        settings = self._settings or node_settings(self._root_config)
        show_envelopes(settings)
        async with AsyncExitStack() as opening:
            opening.callback(self._forget)
            opening.push_async_callback(self._listeners.tasks.cancel)
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
            if settings.gateway:
                from strongroom.gateway.server import serving_http  # noqa: PLC0415  # an extra

                await opening.enter_async_context(serving_http(self))
            self._exit_stack = opening.pop_all()

    async def _open(self, settings: Settings, opening: AsyncExitStack) -> _Running:
        storage = self._given_storage
        if storage is None:
            storage = await open_provider(settings.storage)
            opening.push_async_callback(storage.close)
        stores = await NodeStores.open(storage, settings.node_id)
        opening.push_async_callback(stores.record_clean_stop)
        bindings = Bindings(stores.node.node_id)
        bindings.awaited.update(await stores.bindings())
        way_out = await self._open_way_out(settings, bindings, storage)
        sender = Sender(bindings, way_out, self, self._listeners)
        opening.callback(sender.close)
        delivery = await _delivery(settings, sender, storage)
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
            held=HeldMessages(bindings.awaited),
        )

    async def _open_way_out(
        self, settings: Settings, bindings: Bindings, storage: StorageProvider
    ) -> WayOut:
        """Where messages go that are not for this node."""
        if settings.is_sentinel or self.always_listens:
            from strongroom.nodes.children import Children  # noqa: PLC0415 - only here needed

            return await Children.open(settings, bindings, self, storage)
        if settings.admission_url is None:
            return WayOut()
        return Uplink(settings, bindings, self)

    async def stop(self) -> None:
        """Leave the fabric and close the storage."""
        if self._started is not None:
            self._started.outgoing.check_loop()
        await self._exit_stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _end_residents(self) -> None:
        while self._residents:
            _, resident = self._residents.popitem()
            await _end(resident)

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
            "delivery": running.settings.delivery_profile,
            "sentinel": None,
            "attached": False,
            "bindings": sorted(running.bindings),
            **running.sender.way_out.describe(),
        }

    # --- names ---

    async def serve(self, service: object, service_name: str | None = None) -> FameAddress:
        """Start an agent or another service, then bind its address.

        >>> address = await node.serve(agent)
        >>> assert address == f"storage_agent@{node.path}"

        Args:
            service: An agent; or a function, which becomes an operation of its name; or an object
                of any class with operations.
            service_name: Its address; or a name, to be served at this node's own path. By default
                the agent's name.

        Returns:
            The address at which it can be called.

        Raises:
            InvalidAddress: The address or name cannot be one.
            FabricError: The address is bound on this node already.
        """
        resident = _resident_of(service)
        name = service_name or resident.name
        address = FameAddress(name if "@" in name else f"{name}@{self.path}")
        bound = self._shared(Address.parse(address))
        self._running.outgoing.check_loop()
        self._running.bindings.check_free(bound, resident)
        await resident.begin(self, str(address))
        self._residents[bound] = resident
        try:
            await self.bind(str(bound), resident)
        except BaseException:
            await _end(self._residents.pop(bound))
            raise
        if type(self._running.sender.way_out) is WayOut:
            log.info("only this process can call %s: FAME_DIRECT_ADMISSION_URL is not set", address)
        return address

    def _shared(self, address: Address) -> Address:
        """The pool of an address, if this node is to share names of its host with others."""
        pool = f"*.{address.host}"
        return address._replace(host=pool) if pool in self.settings.requested_logicals else address

    async def bind(self, address: str, handler: Handler) -> None:
        """Let `handler` answer at `address`.

        Raises:
            InvalidAddress: `address` is not an address.
            AttachRefused: Another node has the address.
            AttachFailed: The sentinel did not acknowledge it.
        """
        running, parsed = self._running, Address.parse(address)
        running.outgoing.check_loop()
        running.bindings.add(parsed, handler)
        try:
            if not running.bindings.is_own(parsed):  # which the sentinel finds by its path
                await running.sender.way_out.announce(parsed, list(handler.capabilities))
        except BaseException:
            running.bindings.remove(parsed)
            raise
        if not running.bindings.is_own(parsed):
            await running.stores.add_binding(address, list(handler.capabilities))
        for message in running.held.pop(str(parsed)):
            self._deliver(*message)
        running.delivery.resume(running.incoming)

    async def unbind(self, address: str) -> None:
        """Stop answering at `address`, and stop the agent that was served there."""
        running, parsed = self._running, self._shared(Address.parse(address))
        running.outgoing.check_loop()
        running.bindings.remove(parsed)
        if not running.bindings.is_own(parsed):
            await running.stores.remove_binding(str(parsed))
            await running.sender.way_out.withdraw(parsed)
        resident = self._residents.pop(parsed, None)
        if resident is not None:
            await _end(resident)

    async def send_message(self, address: str, message: Any) -> DeliveryAck | None:
        """Send a plain message, any JSON value, to the agent at `address`.

        Returns:
            With at-least-once delivery the acknowledgement, once the agent's node has stored the
            message. Else None, once the message has left.

        Raises:
            CallTimeout: It was not acknowledged within 30 seconds. It is still sent again.
            InvalidArguments: The message would not arrive as it is.
            MessageTooLarge: It does not fit into a message of the link.
            NoRoute: Nothing is bound there, and there is no sentinel that might know it.
        """
        self._running.outgoing.check_loop()
        return await self._running.delivery.send_message(self.new_message(address, message))

    def new_message(self, address: str, message: Any) -> Envelope:
        """The envelope of a plain message; see `send_message`."""
        Address.parse(address)
        try:
            payload = Raw(_ANYTHING.write(message))
        except Unfit as error:
            raise InvalidArguments(
                f"The message to {address} cannot be sent: {listed(error.problems)}.",
                data=error.problems[:MAX_PROBLEMS],
            ) from None
        return Envelope(
            to=str(address),
            reply_to=self._running.sender.sys_address,  # says whose it is; nothing is answered
            trace_id=own_place.get().trace_id,
            frame=Data(payload=payload),
        )

    async def send(self, envelope: Envelope) -> None:
        """Send an envelope; one without a trace belongs to that of the message being handled."""
        envelope.trace_id = envelope.trace_id or own_place.get().trace_id
        self._running.outgoing.check_loop()
        await self._running.delivery.send(envelope)

    def add_event_listener(self, listener: NodeEventListener) -> None:
        """Let `listener` see what leaves this node and what arrives, after those added before."""
        self._listeners.add(listener)

    def remove_event_listener(self, listener: NodeEventListener) -> None:
        """Undo `add_event_listener`."""
        self._listeners.remove(listener)

    async def redeliver(self) -> None:
        """Take up stored messages that are not under way, such as those an operator retries."""
        await self._running.delivery.start()
        self._running.delivery.resume(self._running.incoming)

    # --- events ---

    def on_message(self, envelope: Envelope, release: Release) -> None:
        """(NodeEvents) Hand a message to the agent, or the call, that it is for."""
        if self._listeners.registered:
            self._listeners.tasks.start(self._on_heard(envelope, release))
        else:
            self._on_message(envelope, release)

    async def _on_heard(self, envelope: Envelope, release: Release) -> None:
        arrived = await self._listeners.arriving(envelope)
        if arrived is None or self._started is None:
            release()
        else:
            self._on_message(arrived, release)

    def _on_message(self, envelope: Envelope, release: Release) -> None:
        frame = envelope.frame
        if isinstance(frame, Data):
            self._deliver(envelope, frame, release)
            return
        release()
        if isinstance(frame, DeliveryAck) and not self._running.delivery.on_ack(frame):
            self._on_ack(envelope, frame)

    def on_link_lost(self, reason: str) -> None:
        """(NodeEvents) Fail, or send again, what was on its way."""
        self._running.delivery.on_link_lost()
        self._running.outgoing.on_link_lost(reason)
        self._running.incoming.on_link_lost()

    def on_undelivered(self, nack: Envelope) -> None:
        """(NodeEvents) Tell another node that its message was not delivered."""
        self._running.sender.send_now(nack)

    def _deliver(self, envelope: Envelope, data: Data, release: Release) -> None:
        running = self._running
        handler = running.bindings.find(envelope)
        if handler is not None:
            running.delivery.receive(running.incoming, Work(handler, envelope, data, release))
        elif (envelope.to or "").startswith(REPLIES):
            if envelope.rtype & ReplyType.ACK:
                running.sender.acknowledge(envelope, DeliveryAck(ok=True))
            running.outgoing.on_reply(envelope, data.payload, release)
        elif not running.held.hold((envelope, data, release)):
            release()
            reason = f"Unroutable to {receiver_of(envelope)}"
            if envelope.corr_id is None:
                log.warning("a message was dropped: nothing is bound at %s", receiver_of(envelope))
            nack = DeliveryAck(ok=False, code=NackCode.NO_ROUTE, reason=reason)
            running.sender.acknowledge(envelope, nack)

    def _on_ack(self, envelope: Envelope, ack: DeliveryAck) -> None:
        if ack.ok:
            self._running.outgoing.check_reader(envelope)
        else:
            self._running.outgoing.on_nack(envelope, ack)
            self._running.incoming.cancel(envelope.corr_id)

    def _refuse_held(self) -> None:
        for message in self._running.held.pop_all():
            self._deliver(*message)


def _resident_of(service: Any) -> Resident:
    if hasattr(service, "__resident__") and not isinstance(service, type):
        resident: Resident = service.__resident__()
        return resident
    from strongroom.nodes.service import Service  # noqa: PLC0415 - loads Pydantic

    return Service(service)


async def _end(resident: Resident) -> None:
    try:
        await resident.end()
    except Exception:
        log.exception("%s raised while it was stopped", type(resident).__name__)


async def _delivery(settings: Settings, sender: Sender, storage: StorageProvider) -> AtMostOnce:
    if settings.delivery_profile == "at-least-once":
        from strongroom.nodes.at_least_once import AtLeastOnce  # noqa: PLC0415 - only here needed

        return await AtLeastOnce.open(sender, storage, settings)
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
