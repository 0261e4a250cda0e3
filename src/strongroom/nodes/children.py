"""The children of a sentinel: their links, their names, and the calls under way to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
from pydantic import BaseModel

from strongroom.admission.door import has_token, is_own_process, refusal_of_request
from strongroom.admission.handshake import check_may_listen, refusal
from strongroom.errors import FabricError, InvalidAddress, NoRoute, StreamStalled
from strongroom.messaging.address import Address, is_address, new_id, source_id
from strongroom.messaging.bindings import Bindings
from strongroom.messaging.envelope import (
    AddressBind,
    AddressBindAck,
    AddressUnbind,
    AddressUnbindAck,
    CapabilityAdvertise,
    CapabilityAdvertiseAck,
    CapabilityWithdraw,
    CapabilityWithdrawAck,
    ControlAck,
    DeliveryAck,
    Envelope,
    FlowFlag,
    NackCode,
    NodeAttach,
    NodeAttachAck,
    NodeHeartbeat,
    NodeHeartbeatAck,
)
from strongroom.messaging.flow import Channel, Release, ends_flow
from strongroom.messaging.link import Link, listen
from strongroom.messaging.routes import ChildNames, Routes
from strongroom.messaging.sender import NodeEvents, WayOut
from strongroom.nodes.background import BackgroundTasks
from strongroom.nodes.child_link import CallUnderWay, ChildLink
from strongroom.settings import Settings

if TYPE_CHECKING:
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

RETURN_SECONDS = 10.0
"""Seconds after the start for which messages wait for children that the last run knew."""
PROBE_SECONDS = 2.0
"""Seconds for which we wait for the old link of a node that attaches again."""
MAX_CHILDREN = 4096
ROUTE_LIFETIME = timedelta(days=7)

log = logging.getLogger(__name__)


class Route(BaseModel):
    """What a sentinel stores about a child."""

    system_id: str
    path: str
    addresses: dict[str, list[str]]
    expires: datetime


class _Waiting(NamedTuple):
    """A message for a child that has not bound its addresses since the sentinel's restart."""

    source: ChildLink
    envelope: Envelope
    data: bytes
    release: Release


def _stored(child: ChildNames) -> dict[str, list[str]]:
    return {address: list(known) for address, known in child.addresses.items()}


class Children(WayOut):
    """The way out of a sentinel, and what routes the messages of its children."""

    def __init__(
        self,
        settings: Settings,
        bindings: Bindings,
        events: NodeEvents,
        store: KeyValueStore[Route],
    ) -> None:
        check_may_listen(settings)
        self.port = 0
        self.links: set[ChildLink] = set()
        self._settings = settings
        self._bindings = bindings
        self._events = events
        self._store = store
        self._admits_all = bool(settings.admission_token or settings.security_profile == "open")
        self._epoch = new_id()
        self._attached: dict[str, ChildLink] = {}
        self._routes = Routes(bindings.path)
        self._tasks = BackgroundTasks("a change of children or their routes failed")
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self._started = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._returning: dict[str, list[_Waiting]] = {}
        self._returned: set[str] = set()
        self._away: dict[str, float] = {}

    @classmethod
    async def open(
        cls,
        settings: Settings,
        bindings: Bindings,
        events: NodeEvents,
        provider: StorageProvider,
    ) -> Self:
        """Open the store of routes; the listener opens at `start`."""
        store = await provider.own_store(Route, "__route_store")
        return cls(settings, bindings, events, store)

    # --- the way out ---

    def channel_to(self, envelope: Envelope) -> Channel:
        child = self._find(envelope)
        child.record_request(envelope)
        return child.channel

    def may_return(self) -> bool:
        return self._loop.time() < self._started + RETURN_SECONDS

    async def start(self) -> None:
        """Load the routes, and listen.

        Raises:
            ListenFailed: The port is taken, or the host is not one of this machine.
        """
        await self._load_routes()
        host, port = self._settings.listener_host, self._settings.listener_port
        self._server = await listen(host, port, self)
        self.port = self._server.sockets[0].getsockname()[1]
        self._started = self._loop.time()
        self._timer = self._loop.call_later(RETURN_SECONDS, self._stop_waiting)
        log.info("%s listens on %s port %d", self._bindings.path, host, self.port)

    async def stop(self) -> None:
        """Close the listener and all links, and finish what is being stored."""
        if self._server is not None:
            self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        links = [child.link for child in self.links]
        for link in links:
            link.close()
        await asyncio.gather(*(link.closed.wait() for link in links))
        await self._tasks.finish()

    def describe(self) -> dict[str, Any]:
        """The port, and each child with its addresses."""
        nodes = [
            {"id": each.system_id, "attached": each.is_attached, "addresses": _stored(each)}
            for each in self._routes.children.values()
        ]
        return {"port": self.port, "nodes": nodes}

    # --- Listener ---

    def refusal(self, headers: Mapping[str, str]) -> HTTPStatus | None:
        """(Listener) Refuse web pages, and requests under a name that is not ours."""
        return refusal_of_request(headers, self._settings)

    def has_token(self, token: str | None) -> bool:
        """(Listener) Check the token before there is a link."""
        return has_token(token, self._settings)

    def on_link(self, link: Link) -> None:
        """(Listener) A child has connected; it attaches with its first message."""
        if not (self._admits_all or link.ends is None or is_own_process(*link.ends)):
            log.warning("%s was refused: its process is another user's", link.name)
            link.close(1008, "processes of other users need FAME_ADMISSION_TOKEN")
            return
        if len(self.links) >= MAX_CHILDREN:
            link.close(1013, f"there are {MAX_CHILDREN} children already")
            return
        self.links.add(ChildLink(self, link))

    def health(self) -> bytes:
        """(Listener) The answer to a health check."""
        return msgspec.json.encode({"status": "healthy", "active_connections": len(self._attached)})

    # --- what children ask of the sentinel ---

    def control(self, child: ChildLink, request: Envelope) -> None:
        """Answer a control frame."""
        frame = request.frame
        if isinstance(frame, NodeAttach):
            self._attach(child, request, frame)
        elif child.system_id is None:
            child.link.close(1008, "the first message is NodeAttach")
        elif isinstance(frame, NodeHeartbeat):
            self._answer(child, request, NodeHeartbeatAck(ok=True, routing_epoch=self._epoch))
        else:
            self._change_names(child, child.system_id, request)

    def _attach(self, child: ChildLink, request: Envelope, frame: NodeAttach) -> None:
        reason = refusal(frame, child.link.name, self._bindings.node_id)
        if reason is None and child.system_id is not None:
            reason = "The link is attached already"
        if reason is not None:
            self._refuse_child(child, request, reason)
        elif frame.system_id not in self._attached:
            self._admit(child, request, frame.system_id)
        else:
            self._tasks.start(self._admit_again(child, request, frame.system_id))

    async def _admit_again(self, child: ChildLink, request: Envelope, system_id: str) -> None:
        """Let a node return whose old link is dead, but no second node under the same id."""
        while (previous := self._attached.get(system_id)) is not None:
            if await previous.link.answers(PROBE_SECONDS):
                reason = f"Another node with the id {system_id!r} is attached, and answers"
                self._refuse_child(child, request, reason)
                return
            if self._attached.get(system_id) is previous:  # no other link was faster
                previous.link.close()
                break
        self._admit(child, request, system_id)

    def _refuse_child(self, child: ChildLink, request: Envelope, reason: str) -> None:
        log.warning("%s was refused: %s", child.link.name, reason)
        self._answer(child, request, NodeAttachAck(ok=False, reason=reason))
        child.link.close(1008, reason)

    def _admit(self, child: ChildLink, request: Envelope, system_id: str) -> None:
        if child.link.closed.is_set():
            return
        self._attached[system_id] = child
        child.on_attached(system_id)
        self._routes.attach(system_id)
        ack = NodeAttachAck(
            ok=True,
            target_system_id=self._bindings.node_id,
            assigned_path=self._path_of(system_id),
            target_physical_path=self._bindings.path,
            routing_epoch=self._epoch,
        )
        self._answer(child, request, ack)
        self._away.pop(system_id, None)
        self._returned.add(system_id)
        self._route_waiting(system_id, None)
        log.info("%s attached", system_id)

    def _change_names(self, child: ChildLink, system_id: str, request: Envelope) -> None:
        frame, routes = request.frame, self._routes
        ack: ControlAck
        match frame:
            case AddressBind(address=address):
                reason = self._bind(system_id, address)
                ack = AddressBindAck(ok=reason is None, address=address, reason=reason)
                if reason is not None:
                    log.warning("%s may not bind %s: %s", system_id, address, reason)
                    self._answer(child, request, ack)
                    return
            case AddressUnbind(address=address):
                routes.unbind(system_id, address)
                ack = AddressUnbindAck(ok=True, address=address)
            case CapabilityAdvertise(address=address, capabilities=capabilities):
                routes.advertise(system_id, address, capabilities)
                ack = CapabilityAdvertiseAck(ok=True, address=address, capabilities=capabilities)
            case CapabilityWithdraw(address=address, capabilities=capabilities):
                routes.withdraw(system_id, address, capabilities)
                ack = CapabilityWithdrawAck(ok=True, address=address, capabilities=capabilities)
            case _:
                log.info("%s sent %s, which is not for us", system_id, type(frame).__name__)
                return
        self._tasks.start(self._store_and_answer(child, system_id, request, ack))

    def _bind(self, system_id: str, address: str) -> str | None:
        """Bind an address to a child; returns why that is refused, None if it is not."""
        if not is_address(address):
            return "This is not an address"
        owner = self._routes.bind(system_id, address)
        return None if owner is None else f"{owner} has this address, and is attached"

    async def _store_and_answer(
        self, child: ChildLink, system_id: str, request: Envelope, ack: ControlAck
    ) -> None:
        route = Route(
            system_id=system_id,
            path=self._path_of(system_id),
            addresses=_stored(self._routes.child(system_id)),
            expires=datetime.now(UTC) + ROUTE_LIFETIME,
        )
        await self._store.set(system_id, route)
        self._answer(child, request, ack)
        if isinstance(ack, AddressBindAck):
            self._route_waiting(system_id, ack.address)

    def _answer(self, child: ChildLink, request: Envelope, ack: ControlAck) -> None:
        ack.ref_id = request.id
        child.channel.send_now(
            Envelope(
                sid=source_id(self._bindings.path),
                trace_id=request.trace_id,
                corr_id=request.corr_id,
                frame=ack,
            )
        )

    async def _load_routes(self) -> None:
        for system_id, route in (await self._store.list()).items():
            if route.expires < datetime.now(UTC):
                await self._store.delete(system_id)
                continue
            self._away[system_id] = self._loop.time()
            for address, capabilities in route.addresses.items():
                self._routes.bind(system_id, address)
                self._routes.advertise(system_id, address, capabilities)

    def _forget_long_gone(self) -> None:
        oldest = self._loop.time() - ROUTE_LIFETIME.total_seconds()
        while self._away:
            system_id, left = next(iter(self._away.items()))
            if left > oldest:
                break
            del self._away[system_id]
            if system_id in self._routes.children:
                self._routes.forget(system_id)
                self._tasks.start(self._store.delete(system_id))

    def _path_of(self, system_id: str) -> str:
        return f"{self._bindings.path}/{system_id}"

    def on_child_lost(self, child: ChildLink, reason: str) -> None:
        """A link is gone: tell every caller that waits for an answer over it."""
        self.links.discard(child)
        if child.system_id is None:
            return
        if self._attached.get(child.system_id) is child:
            del self._attached[child.system_id]
            self._routes.left(child.system_id)
            self._away[child.system_id] = self._loop.time()
            self._forget_long_gone()
            log.info("%s is gone: %s", child.system_id, reason)
        for corr_id, call in child.under_way.items():
            text = f"The node that ran the call is gone, and it may have run: {reason}."
            self._nack(call, corr_id, NackCode.CALL_INTERRUPTED, text)
        child.under_way.clear()

    # --- messages from children ---

    def route(self, source: ChildLink, envelope: Envelope, data: bytes, release: Release) -> None:
        """Forward a message unchanged, or hand it to the sentinel's own node."""
        source.record_answer(envelope)
        try:
            if self._bindings.is_here(envelope):
                self._events.on_message(envelope, release)
                return
            child = self._find(envelope)
            if child is source:  # it sent this to us because it does not have the address
                raise NoRoute(f"Unroutable to {envelope.to}", code=NackCode.NO_ROUTE)
            flow_id = envelope.flow_id or ""
            child.channel.enqueue(flow_id, data, release)
        except (NoRoute, InvalidAddress, StreamStalled) as error:
            if not self._wait_for_return(_Waiting(source, envelope, data, release), error):
                release()
                self._refuse(envelope, error)
            return
        child.record_request(envelope)
        if ends_flow(envelope):
            child.channel.end_flow(flow_id)

    def _wait_for_return(self, message: _Waiting, error: FabricError) -> bool:
        """Keep a message for a child that has not attached since the restart, but may soon.

        The credit of their senders bounds these messages.
        """
        is_away = isinstance(error, NoRoute) and error.code == NackCode.CHILD_UNREACHABLE
        if not (is_away and self.may_return()):
            return False
        envelope = message.envelope
        system_id = self._routes.find(
            envelope.to, envelope.capabilities, envelope.id, even_if_away=True
        )
        if system_id in self._returned:
            return False
        self._returning.setdefault(system_id, []).append(message)
        return True

    def _route_waiting(self, system_id: str, bound: str | None) -> None:
        """Forward what waited for a child and can be delivered, now that it has bound `bound`."""
        others = self._routes.child(system_id).addresses.keys() - {bound}
        for message in self._returning.pop(system_id, []):
            to = message.envelope.to
            is_early = to in others or bound is None
            if is_early and not (to and Address.parse(to).path):
                self._returning.setdefault(system_id, []).append(message)
            else:
                self.route(*message)

    def _stop_waiting(self) -> None:
        waiting, self._returning = self._returning, {}
        for message in chain(*waiting.values()):
            self.route(*message)

    def _find(self, envelope: Envelope) -> ChildLink:
        system_id = self._routes.find(envelope.to, envelope.capabilities, envelope.id)
        return self._attached[system_id]

    def _refuse(self, envelope: Envelope, error: FabricError) -> None:
        if envelope.reply_to and envelope.corr_id:
            call = CallUnderWay(envelope.id, envelope.reply_to, envelope.trace_id, is_stream=False)
            code = error.code if isinstance(error, NoRoute) else None
            if isinstance(error, StreamStalled):
                code = NackCode.STREAM_STALLED
            self._nack(call, envelope.corr_id, str(code or NackCode.NO_ROUTE), str(error))

    def _nack(self, call: CallUnderWay, corr_id: str, code: str, reason: str) -> None:
        nack = Envelope(
            trace_id=call.trace_id,
            to=call.reply_to,
            corr_id=corr_id,
            flow_flags=FlowFlag.RESET,
            frame=DeliveryAck(ok=False, code=code, reason=reason, ref_id=call.request_id),
        )
        self._events.on_undelivered(nack)
