"""The children of a sentinel: their links, their names, and the calls under way to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from strongroom.admission.door import (
    admits_all,
    has_token,
    is_own_process,
    is_same_token,
    refusal_of_request,
    system_names_owners,
)
from strongroom.admission.handshake import check_may_listen, refusal
from strongroom.admission.local_token import forget_token, make_token
from strongroom.background import BackgroundTasks
from strongroom.errors import FabricError, InvalidAddress, NoRoute, StreamStalled
from strongroom.messaging.address import SYSTEM, Address, new_id, source_id
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
    encode,
)
from strongroom.messaging.flow import Channel, Release, Waiting, ends_flow
from strongroom.messaging.link import Link
from strongroom.messaging.listening import Port, listen
from strongroom.messaging.sender import NodeEvents, WayOut
from strongroom.nodes.child_link import ChildLink
from strongroom.nodes.names import NameFrame, Names, Route, stored
from strongroom.peers_log import peers_log
from strongroom.settings import Settings

if TYPE_CHECKING:
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

RETURN_SECONDS = 10.0
"""Seconds after the start for which messages wait for children that the last run knew."""
PROBE_SECONDS = 2.0
"""Seconds for which we wait for the old link of a node that attaches again."""
MAX_CHILDREN = 4096
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Bytes that wait for one child to read, above which more are refused."""
MAX_ALL_WAITING_BYTES = 256 * 1024 * 1024
"""The same for all children: above it, those for whom more than their share waits get no more."""

log = peers_log(__name__)


class _Waiting(NamedTuple):
    """A message for a child that has not bound its addresses since the sentinel's restart."""

    source: ChildLink
    envelope: Envelope
    data: bytes
    release: Release


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
        self._admits_all = admits_all(settings)
        self._local_token: str | None = None
        self._epoch = new_id()
        self._attached: dict[str, ChildLink] = {}
        self._names = Names(bindings.path, store)
        self._waiting = Waiting()
        self._tasks = BackgroundTasks("a change of children or their routes failed")
        self._listening: Port | None = None
        self._loop = asyncio.get_running_loop()
        self._started = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._returning: dict[str, list[_Waiting]] = {}
        self._returning_bytes = 0
        self._returned: set[str] = set()

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
        child.record_request(envelope, None)
        return child.channel

    def may_return(self) -> bool:
        return self._loop.time() < self._started + RETURN_SECONDS

    async def start(self) -> None:
        """Load the routes, and listen.

        Raises:
            ListenFailed: The port is taken, or the host is not one of this machine.
        """
        await self._names.load()
        host, port = self._settings.listener_host, self._settings.listener_port
        self._listening = await listen(host, port, self)
        self.port = self._listening.number
        if not (self._admits_all or system_names_owners()):
            self._local_token = make_token(self.port)
        self._started = self._loop.time()
        self._timer = self._loop.call_later(RETURN_SECONDS, self._stop_waiting)
        log.info("%s listens on %s port %d", self._bindings.path, host, self.port)

    async def stop(self) -> None:
        """Close the listener and all links, and finish what is being stored."""
        if self._listening is not None:
            self._listening.close()
        if self._local_token is not None:
            forget_token(self.port)
        if self._timer is not None:
            self._timer.cancel()
        links = [child.link for child in self.links]
        for link in links:
            link.close()
        await asyncio.gather(*(link.closed.wait() for link in links))
        await self._tasks.finish()

    def describe(self) -> dict[str, Any]:
        """The port, each child with its addresses, and what is held for all of them."""
        nodes = [
            {"id": each.system_id, "attached": each.is_attached, "addresses": stored(each)}
            for each in self._names.routes.children.values()
        ]
        held = {
            "waiting_bytes": self._waiting.bytes,
            "calls_under_way": sum(len(child.under_way) for child in self.links),
        }
        return {"port": self.port, "nodes": nodes, "held": held}

    # --- Listener ---

    def refusal(self, headers: Mapping[str, str]) -> HTTPStatus | None:
        """(Listener) Refuse web pages, and requests under a name that is not ours."""
        return refusal_of_request(headers, self._settings)

    def has_token(self, token: str | None) -> bool:
        """(Listener) Check the token before there is a link."""
        return has_token(token, self._settings)

    def on_link(self, link: Link) -> None:
        """(Listener) A child has connected; it attaches with its first message."""
        if not self._may_stay(link):
            log.warning("%s was refused: its process is another user's", link.name)
            link.close(1008, "processes of other users need FAME_ADMISSION_TOKEN")
            return
        self.links.add(ChildLink(self, link, self._waiting))

    def _may_stay(self, link: Link) -> bool:
        if self._admits_all or link.ends is None:
            return True
        if self._local_token is not None:
            return is_same_token(link.token, self._local_token)
        return is_own_process(*link.ends)

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
            if child.link.writable:  # a child that does not read gets no answer
                self._answer(child, request, NodeHeartbeatAck(ok=True, routing_epoch=self._epoch))
        elif isinstance(frame, NameFrame):
            self._change_names(child, child.system_id, request, frame)
        else:
            log.info("%s sent %s, which is not for us", child.system_id, type(frame).__name__)

    def _attach(self, child: ChildLink, request: Envelope, frame: NodeAttach) -> None:
        reason = refusal(frame, child.link.name, self._bindings.node_id)
        if reason is None and child.system_id is not None:
            reason = "The link is attached already"
        if reason is None and self._is_full(frame.system_id):
            reason = f"There are {MAX_CHILDREN} children already"
        if reason is not None:
            self._refuse_child(child, request, reason)
        elif frame.system_id not in self._attached:
            self._admit(child, request, frame.system_id)
        else:
            self._tasks.start(self._admit_again(child, request, frame.system_id))

    def _is_full(self, system_id: str) -> bool:
        return len(self._attached) >= MAX_CHILDREN and system_id not in self._attached

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
        self._names.attach(system_id)
        ack = NodeAttachAck(
            ok=True,
            target_system_id=self._bindings.node_id,
            assigned_path=self._names.path_of(system_id),
            target_physical_path=self._bindings.path,
            routing_epoch=self._epoch,
        )
        self._answer(child, request, ack)
        self._returned.add(system_id)
        self._route_waiting(system_id, None)
        log.info("%s attached", system_id)

    def _change_names(
        self, child: ChildLink, system_id: str, request: Envelope, frame: NameFrame
    ) -> None:
        reason = self._names.change(system_id, frame)
        ack = _ack(frame, reason)
        if reason is None:
            self._tasks.start(self._keep_and_answer(child, system_id, request, ack))
        else:
            log.warning("%s: %s was refused: %s", system_id, type(frame).__name__, reason)
            self._answer(child, request, ack)

    async def _keep_and_answer(
        self, child: ChildLink, system_id: str, request: Envelope, ack: ControlAck
    ) -> None:
        await self._names.keep(system_id)
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

    def on_child_lost(self, child: ChildLink, reason: str) -> None:
        """A link is gone: tell every caller that waits for an answer over it."""
        self.links.discard(child)
        if child.system_id is None:
            return
        if self._attached.get(child.system_id) is child:
            del self._attached[child.system_id]
            self._names.left(child.system_id)
            self._tasks.start(self._names.forget_long_gone())
            log.info("%s is gone: %s", child.system_id, reason)
        text = f"The node that ran the call is gone, and it may have run: {reason}."
        for (corr_id, reply_to), call in child.interrupted():
            nack = _nack(reply_to, corr_id, call.request_id, NackCode.CALL_INTERRUPTED, text)
            nack.trace_id = call.trace_id
            self._events.on_undelivered(nack)

    # --- messages from children ---

    def route(self, source: ChildLink, envelope: Envelope, data: bytes, release: Release) -> None:
        """Forward a message unchanged, or hand it to the sentinel's own node."""
        source.record_answer(envelope)
        try:
            reply_to = envelope.reply_to
            if reply_to is not None and reply_to != source.reply_to:
                self._check_reply_to(source, reply_to)
            if self._bindings.is_here(envelope):
                self._events.on_message(envelope, release)
                return
            child = self._find(envelope)
            if child is source:  # it sent this to us because it does not have the address
                raise NoRoute(f"Unroutable to {envelope.to}", code=NackCode.NO_ROUTE)
            if child.channel.waiting_bytes:
                self._check_room(child)
            flow_id = envelope.flow_id or source.flow_id
            if not envelope.flow_id:
                data = _on_flow(data, flow_id)
            child.channel.enqueue(flow_id, data, release)
        except (NoRoute, InvalidAddress, StreamStalled) as error:
            message = _Waiting(source, envelope, data, release)
            if not self._wait_for_return(message, error):
                self._refuse(message, error)
            return
        child.record_request(envelope, source)
        if ends_flow(envelope):
            child.channel.end_flow(flow_id)

    def _check_reply_to(self, source: ChildLink, reply_to: str) -> None:
        """Answers must not go to a node that did not ask."""
        if not self._names.leads_to(source.system_id or "", reply_to):
            raise InvalidAddress("The replyTo of the message is not an address of its sender.")
        if self._names.routes.owner(reply_to) is None:  # by its path, so it stays so
            source.reply_to = reply_to

    def _check_room(self, child: ChildLink) -> None:
        limit = MAX_WAITING_BYTES
        if self._waiting.bytes > MAX_ALL_WAITING_BYTES:
            limit = min(limit, MAX_ALL_WAITING_BYTES // len(self._attached))
        if child.channel.waiting_bytes > limit:
            raise StreamStalled(f"{child.system_id} does not read what others send to it.")

    def _wait_for_return(self, message: _Waiting, error: FabricError) -> bool:
        """Keep a message for a child that has not attached since the restart, but may soon.

        All that wait in the seconds after the start together have MAX_WAITING_BYTES.
        """
        is_away = isinstance(error, NoRoute) and error.code == NackCode.CHILD_UNREACHABLE
        if not (is_away and self.may_return()):
            return False
        envelope = message.envelope
        system_id = self._names.routes.find(
            envelope.to, envelope.capabilities, envelope.id, even_if_away=True
        )
        if system_id in self._returned or self._returning_bytes > MAX_WAITING_BYTES:
            return False
        self._returning_bytes += len(message.data)
        self._returning.setdefault(system_id, []).append(message)
        return True

    def _route_waiting(self, system_id: str, bound: str | None) -> None:
        """Forward what waited for a child and can be delivered, now that it has bound `bound`."""
        others = self._names.routes.child(system_id).addresses.keys() - {bound}
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
        system_id = self._names.routes.find(envelope.to, envelope.capabilities, envelope.id)
        return self._attached[system_id]

    def _refuse(self, message: _Waiting, error: FabricError) -> None:
        """Tell the child that sent a message why it was not delivered.

        Its credit comes back when the nack has left, so that no more nacks wait than messages.
        """
        source, envelope = message.source, message.envelope
        if not (envelope.reply_to and envelope.corr_id):
            message.release()
            return
        code = error.code if isinstance(error, NoRoute) else None
        if isinstance(error, StreamStalled):
            code = NackCode.STREAM_STALLED
        to, system_id = envelope.reply_to, source.system_id or ""
        if not self._names.leads_to(system_id, to):
            to = f"{SYSTEM}@{self._names.path_of(system_id)}"
        nack = _nack(to, envelope.corr_id, envelope.id, str(code or NackCode.NO_ROUTE), str(error))
        nack.trace_id, nack.flow_id = envelope.trace_id, source.nack_flow_id
        nack.sid = source_id(self._bindings.path)
        try:
            source.channel.enqueue(source.nack_flow_id, encode(nack), message.release)
        except StreamStalled:
            message.release()


def _on_flow(data: bytes, flow_id: str) -> bytes:
    """A message that has no flow, on one: otherwise nothing would limit how many are under way."""
    return b'%s,"flowId":"%s"}' % (data.rstrip()[:-1], flow_id.encode())


def _ack(frame: NameFrame, reason: str | None) -> ControlAck:
    is_ok, address = reason is None, frame.address
    match frame:
        case AddressBind():
            return AddressBindAck(ok=is_ok, address=address, reason=reason)
        case AddressUnbind():
            return AddressUnbindAck(ok=is_ok, address=address, reason=reason)
        case CapabilityAdvertise(capabilities=names):
            return CapabilityAdvertiseAck(
                ok=is_ok, address=address, capabilities=names, reason=reason
            )
        case CapabilityWithdraw(capabilities=names):
            return CapabilityWithdrawAck(
                ok=is_ok, address=address, capabilities=names, reason=reason
            )


def _nack(to: str, corr_id: str, request_id: str, code: str, reason: str) -> Envelope:
    ack = DeliveryAck(ok=False, code=code, reason=reason, ref_id=request_id)
    return Envelope(to=to, corr_id=corr_id, flow_flags=FlowFlag.RESET, frame=ack)
