"""A node: an identity, names bound to what answers there, and messages sent and taken."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self

import msgspec
from msgspec import Raw

from strongroom.admission.handshake import Membership
from strongroom.errors import AttachFailed, FabricError, NoRoute, SettingsError
from strongroom.messaging.address import Address, new_id, source_id
from strongroom.messaging.calls import Calls
from strongroom.messaging.envelope import (
    AddressBind,
    AddressBindAck,
    AddressUnbind,
    AddressUnbindAck,
    CapabilityAdvertise,
    CapabilityAdvertiseAck,
    Data,
    DeliveryAck,
    Envelope,
    ReplyType,
    encode,
)
from strongroom.messaging.flow import Channel, Taken, ends_flow
from strongroom.messaging.link import Loopback
from strongroom.messaging.routes import NO_ROUTE, in_pool
from strongroom.messaging.rpc import Handler
from strongroom.messaging.serving import Served
from strongroom.nodes.delivery import Delivery
from strongroom.nodes.held import Returning
from strongroom.nodes.identity import Housekeeping
from strongroom.nodes.uplink import Uplink
from strongroom.settings import Settings
from strongroom.storage.provider import StorageProvider, open_provider

RETRY_WINDOW = 10.0
"""So long after a sentinel's restart a missing route may still come back."""
MAX_DESTINATIONS = 512
LANES = 4

log = logging.getLogger("strongroom.nodes")


class Resident(Handler, Protocol):
    """What lives on a node: it starts before its address is bound, and ends after."""

    async def begin(self, node: Node, address: str) -> None:
        """Get ready; the node's storage is there."""

    async def end(self) -> None:
        """Let go of everything."""


class Node:
    """One node. Under a sentinel when FAME_DIRECT_ADMISSION_URL names one, else by itself.

    >>> async with Node() as node:
    ...     await node.bind("echo@fame.fabric", handler)
    """

    has_routes = False
    settings: Settings

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self.storage: StorageProvider | None = None
        self.id = ""
        self.path = ""
        self._sid = ""
        self._inbox = f"__rpc__{new_id()}"
        self._handlers: dict[str, Handler] = {}
        self._pools: list[Address] = []
        self._residents: list[Resident] = []
        self._flows: dict[str, list[str]] = {}
        self._turn = 0
        self._uplink: Uplink | None = None
        self._delivery: Delivery | None = None
        self._open = AsyncExitStack()

    # --- life ---

    async def start(self) -> None:
        """Open the storage and join the fabric.

        Raises:
            SettingsError: A FAME_* variable cannot be understood.
            StorageError: The storage cannot be used.
            AttachFailed: The sentinel cannot be reached.
        """
        self.settings = self._given or Settings.from_environment()
        show_envelopes(self.settings)
        async with AsyncExitStack() as opening:
            self.storage = await open_provider(self.settings.storage)
            opening.push_async_callback(self.storage.close)
            self._kept = await Housekeeping.open(
                self.storage, self.settings.node_id, with_routes=self.has_routes
            )
            opening.push_async_callback(self._kept.stopped)
            self.id = self._kept.node.node_id
            self._move(f"/{self.id}")
            self._home = Channel(Loopback(), self._deliver, lambda _channel, _reason: None)
            opening.callback(self._home.link.close)
            await self._open_delivery(opening)
            self.calls = Calls(
                self.send,
                self.post,
                self._reply_to,
                may_retry=self._may_retry,
                settled=self._delivery.settle if self._delivery else lambda _: None,
            )
            answered = self._delivery.answered if self._delivery else None
            self._served = Served(self._transmit, self._sys_address, answered)
            self._returning = Returning(await self._kept.bindings(), self._deliver_data)
            opening.callback(self._returning.give_up)
            await self._join(opening)
            if self._delivery is not None:
                await self._delivery.start()
            opening.push_async_callback(self._end_residents)
            opening.push_async_callback(self._served.stop)
            if self.storage.needs_directory:
                from strongroom.admin.socket import admin_socket  # noqa: PLC0415  # loads SQLite

                await opening.enter_async_context(admin_socket(self.storage, self))
            self._open = opening.pop_all()

    async def _open_delivery(self, opening: AsyncExitStack) -> None:
        profile = self.settings.delivery_profile
        if profile not in {"at-most-once", "at-least-once"}:
            raise SettingsError(
                f"FAME_DELIVERY_PROFILE is {profile!r}.", remedy="at-most-once or at-least-once"
            )
        if profile == "at-least-once":
            assert self.storage is not None
            stores = await Delivery.open_stores(self.storage)
            self._delivery = Delivery(stores, self._transmit, self._acknowledge, self._sys_address)
            opening.push_async_callback(self._delivery.stop)

    def _sys_address(self) -> str:
        return f"__sys__@{self.path}"

    async def _join(self, opening: AsyncExitStack) -> None:
        if self.settings.admission_url is None:
            return
        self._uplink = Uplink(
            self.settings,
            self.id,
            deliver=self._deliver,
            joined=self._joined,
            rebind=self._rebind,
            lost=self._lost,
        )
        opening.push_async_callback(self._uplink.stop)
        await self._uplink.start()

    async def stop(self) -> None:
        """Leave the fabric and close the storage."""
        await self._open.aclose()

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
                log.exception("%s did not end as it should", type(resident).__name__)

    def describe(self) -> dict[str, Any]:
        """What an operator sees of the node."""
        return {
            "id": self.id,
            "path": self.path,
            "process": os.getpid(),
            "profile": self.settings.storage.profile,
            "sentinel": self.settings.admission_url,
            "attached": self._uplink is not None and self._uplink.channel is not None,
            "bindings": sorted(self._handlers),
        }

    def _joined(self, place: Membership) -> None:
        self._move(place.path)

    def _move(self, path: str) -> None:
        self.path = path
        self._sid = source_id(path)

    def _lost(self, reason: str) -> None:
        log.warning("the link to the sentinel is lost: %s", reason)
        reason = f"the link to the sentinel was lost ({reason})"
        if self._delivery is not None:
            self._delivery.stir()
        is_kept = self._delivery is not None
        self.calls.interrupt(reason, spare=self._handlers, only_streams=is_kept)

    def _reply_to(self) -> str:
        return f"{self._inbox}@{self.path}"

    def _may_retry(self) -> bool:
        if self._uplink is None:
            return False
        return asyncio.get_running_loop().time() < self._uplink.epoch_changed + RETRY_WINDOW

    # --- names ---

    async def serve(self, resident: Resident, address: str) -> None:
        """Start what lives at `address`, then bind it."""
        Address.parse(address)
        await resident.begin(self, address)
        self._residents.append(resident)
        await self.bind(address, resident)

    async def bind(self, address: str, handler: Handler) -> None:
        """Let `handler` answer at `address`.

        Raises:
            InvalidAddress: It is no address.
            AttachFailed: The sentinel did not acknowledge it.
        """
        parsed = Address.parse(address)
        self._handlers[str(parsed)] = handler
        if parsed.is_pool:
            self._handlers[str(parsed.member(self.id))] = handler
            self._pools.append(parsed)
        await self._kept.bound(address, list(handler.capabilities))
        await self._announce(parsed, handler)
        self._returning.bound(str(parsed))
        if self._delivery is not None:
            names = {name for name, bound in self._handlers.items() if bound is handler}
            self._delivery.resume(self._served, handler, names)

    async def unbind(self, address: str) -> None:
        """No longer answer at `address`."""
        parsed = Address.parse(address)
        self._handlers.pop(str(parsed), None)
        if parsed in self._pools:
            self._pools.remove(parsed)
            self._handlers.pop(str(parsed.member(self.id)), None)
        await self._kept.unbound(address)
        if self._uplink is not None:
            await self._uplink.request(AddressUnbind(address=address), AddressUnbindAck)

    async def _announce(self, address: Address, handler: Handler) -> None:
        if self._uplink is None:
            return
        bind = AddressBind(address=str(address))
        ack = await self._uplink.request(bind, AddressBindAck)
        if not ack.ok:
            raise AttachFailed(f"The sentinel did not bind {address}: {ack.reason or ack.code}.")
        instance = address.member(self.id) if address.is_pool else address
        skills = CapabilityAdvertise(capabilities=list(handler.capabilities), address=str(instance))
        await self._uplink.request(skills, CapabilityAdvertiseAck)

    async def _rebind(self) -> None:
        for address, handler in list(self._handlers.items()):
            parsed = Address.parse(address)
            if parsed in self._pools or not any(in_pool(parsed, pool) for pool in self._pools):
                await self._announce(parsed, handler)

    # --- sending ---

    async def send(self, envelope: Envelope, timeout: float | None = None) -> None:
        """Send towards `to`, and return when the message has left.

        Raises:
            NoRoute: Nobody is there, and no sentinel is above who might know.
            StreamStalled: Nobody took anything for `timeout` seconds.
            MessageTooLarge: It is larger than a link carries.
        """
        is_kept = isinstance(envelope.frame, Data) and not envelope.rtype & ReplyType.STREAM
        if self._delivery is not None and is_kept:
            await self._delivery.send(envelope)
        else:
            await self._transmit(envelope, timeout)

    async def _transmit(self, envelope: Envelope, timeout: float | None = None) -> None:
        channel = self._channel_to(envelope)
        if channel is None:
            assert self._uplink is not None
            channel = await self._uplink.wait()
        data = self._seal(envelope)
        assert envelope.flow_id is not None
        await channel.send(envelope.flow_id, data, timeout)
        if ends_flow(envelope):
            channel.end_flow(envelope.flow_id)

    def post(self, envelope: Envelope) -> None:
        """Send towards `to` at once, without credit; what cannot be sent now is lost."""
        try:
            channel = self._channel_to(envelope)
            if channel is not None:
                envelope.sid = self._sid
                channel.control(envelope)
        except FabricError as error:
            log.debug("not sent: %s", error)

    async def send_message(self, address: str, message: Any) -> None:
        """Send a plain message, any JSON, to whatever is bound at `address`.

        Raises:
            NoRoute: Nobody is there, and no sentinel is above who might know.
        """
        Address.parse(address)
        payload = Raw(msgspec.json.encode(message))
        await self.send(Envelope(to=address, frame=Data(payload=payload)))

    def _seal(self, envelope: Envelope) -> bytes:
        envelope.sid = self._sid
        if envelope.flow_id is None:
            envelope.flow_id = self._flow_to(envelope)
        return encode(envelope)

    def _flow_to(self, envelope: Envelope) -> str:
        # Flows for each destination, so that one that takes nothing stops no other. Calls and
        # answers take them in turn; plain messages, whose order matters, keep to the first.
        destination = envelope.to or ""
        flows = self._flows.get(destination)
        if flows is None:
            if len(self._flows) >= MAX_DESTINATIONS:
                self._flows.clear()
            flows = self._flows[destination] = [new_id() for _ in range(LANES)]
        if envelope.corr_id is None:
            return flows[0]
        self._turn = (self._turn + 1) % LANES
        return flows[self._turn]

    def _channel_to(self, envelope: Envelope) -> Channel | None:
        """The way to `to`; None while the link to the sentinel is down."""
        if self._is_here(envelope):
            return self._home
        if self._uplink is None:
            raise NoRoute(f"Nobody is bound to {_target(envelope)}.", code=NO_ROUTE)
        return self._uplink.channel

    # --- receiving ---

    def _is_here(self, envelope: Envelope) -> bool:
        if self._handler_of(envelope) is not None:
            return True
        return envelope.to is not None and Address.parse(envelope.to).path == self.path

    def _handler_of(self, envelope: Envelope) -> Handler | None:
        if envelope.to is None:
            return self._able(envelope.capabilities or ())
        handler = self._handlers.get(envelope.to)
        if handler is None and self._pools:
            return self._in_pool(Address.parse(envelope.to))
        return handler

    def _able(self, capabilities: Sequence[str]) -> Handler | None:
        wanted = set(capabilities)
        able = (
            handler for handler in self._handlers.values() if wanted <= set(handler.capabilities)
        )
        return next(able, None) if wanted else None

    def _in_pool(self, address: Address) -> Handler | None:
        return next((self._handlers[str(p)] for p in self._pools if in_pool(address, p)), None)

    def _deliver(self, _channel: Channel, envelope: Envelope, _data: bytes, taken: Taken) -> None:
        frame = envelope.frame
        if isinstance(frame, Data):
            self._deliver_data(envelope, frame, taken)
            return
        taken()
        if not isinstance(frame, DeliveryAck):
            return
        is_heeded = self._delivery is not None and self._delivery.on_ack(frame)
        if not is_heeded and not frame.ok:
            self.calls.on_nack(envelope, frame)
            self._served.cancel(envelope.corr_id)

    def _deliver_data(self, envelope: Envelope, data: Data, taken: Taken) -> None:
        handler = self._handler_of(envelope)
        is_reply = handler is None and (envelope.to or "").startswith("__rpc__")
        wants_ack = bool(envelope.rtype & ReplyType.ACK)
        is_kept = self._delivery is not None and not envelope.rtype & ReplyType.STREAM
        if handler is not None and wants_ack and is_kept:
            assert self._delivery is not None
            self._delivery.take(self._served, handler, envelope, data, taken)
            return
        if wants_ack and (handler is not None or is_reply):
            self._acknowledge(envelope, DeliveryAck(ok=True))
        if is_reply:
            self.calls.on_reply(envelope, data.payload, taken)
        elif handler is not None:
            self._served.start(handler, envelope, data, taken)
        elif not self._returning.hold(envelope, data, taken):
            taken()
            reason = f"Unroutable to {_target(envelope)}"
            self._acknowledge(envelope, DeliveryAck(ok=False, code=NO_ROUTE, reason=reason))

    def _acknowledge(self, envelope: Envelope, ack: DeliveryAck) -> None:
        if envelope.reply_to is None or envelope.corr_id is None:
            return
        ack.ref_id = envelope.id
        self.post(
            Envelope(
                trace_id=envelope.trace_id,
                to=envelope.reply_to,
                corr_id=envelope.corr_id,
                frame=ack,
            )
        )


def _target(envelope: Envelope) -> str:
    return envelope.to or f"anyone who can {', '.join(envelope.capabilities or ())}"


def show_envelopes(settings: Settings) -> None:
    """Write each envelope to the log, when FAME_SHOW_ENVELOPES asks for it."""
    logger = logging.getLogger("strongroom.envelopes")
    if settings.show_envelopes and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
