"""The sentinel: nodes attach to it, and it brings their messages to each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import msgspec

from strongroom.admission.handshake import answer, check_may_listen, refusal
from strongroom.errors import CallError, FabricError, InvalidAddress, NoRoute, StreamStalled
from strongroom.messaging.address import is_address, new_id
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
    Data,
    DeliveryAck,
    Envelope,
    FlowFlag,
    NodeAttach,
    NodeAttachAck,
    NodeHeartbeat,
    NodeHeartbeatAck,
    ReplyType,
)
from strongroom.messaging.flow import Channel, Taken, ends_flow
from strongroom.messaging.link import Link, listen
from strongroom.messaging.routes import NO_ROUTE, Routes
from strongroom.messaging.rpc import CALL_INTERRUPTED, STREAM_STALLED, read_response
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.process import run_until_stopped
from strongroom.settings import Settings

ATTACH_WITHIN = 10.0
MAX_CHILDREN = 4096
MAX_UNDER_WAY = 65536

log = logging.getLogger("strongroom.nodes")


class _Call(NamedTuple):
    """What is needed to tell a caller that its call was cut off."""

    request_id: str
    reply_to: str
    trace_id: str | None
    is_stream: bool


class _Child:
    """A child's link, and the calls under way to it."""

    def __init__(self, sentinel: Sentinel, link: Link) -> None:
        self._sentinel = sentinel
        self.system_id: str | None = None
        self.under_way: dict[str, _Call] = {}
        self.channel = Channel(link, self._on_envelope, self._on_closed)
        self._deadline = asyncio.get_running_loop().call_later(ATTACH_WITHIN, self._too_late)

    @property
    def link(self) -> Link:
        """The connection."""
        assert isinstance(self.channel.link, Link)
        return self.channel.link

    def attached(self, system_id: str) -> None:
        """The handshake is done."""
        self.system_id = system_id
        self._deadline.cancel()

    def _too_late(self) -> None:
        self.link.close(1008, "no NodeAttach came")

    def _on_envelope(self, _: Channel, envelope: Envelope, data: bytes, taken: Taken) -> None:
        if isinstance(envelope.frame, Data | DeliveryAck) and self.system_id is not None:
            self._sentinel.route(self, envelope, data, taken)
        else:
            taken()
            self._sentinel.control(self, envelope)

    def _on_closed(self, _: Channel, reason: str) -> None:
        self._deadline.cancel()
        self._sentinel.detached(self, reason)

    def called(self, envelope: Envelope) -> None:
        """A message goes to this child; remember it if it is a call."""
        if not envelope.rtype & (ReplyType.REPLY | ReplyType.STREAM):
            return
        if envelope.corr_id is None or envelope.reply_to is None:
            return
        if len(self.under_way) >= MAX_UNDER_WAY:
            del self.under_way[next(iter(self.under_way))]
        is_stream = bool(envelope.rtype & ReplyType.STREAM)
        call = _Call(envelope.id, envelope.reply_to, envelope.trace_id, is_stream)
        self.under_way[envelope.corr_id] = call

    def answered(self, envelope: Envelope) -> None:
        """A message comes from this child; forget the call that it ends."""
        call = self.under_way.get(envelope.corr_id or "")
        if call is None or envelope.to != call.reply_to:
            return
        if not call.is_stream or _ends_stream(envelope):
            del self.under_way[envelope.corr_id or ""]


def _ends_stream(envelope: Envelope) -> bool:
    if not isinstance(envelope.frame, Data) or ends_flow(envelope):
        return True
    try:
        return read_response(envelope.frame.payload).value() is None
    except (msgspec.MsgspecError, CallError, RecursionError):
        return True


class Sentinel(Fabric):
    """A node to which others attach. It listens on FAME_LISTENER_HOST and FAME_LISTENER_PORT.

    >>> asyncio.run(Sentinel().aserve())
    """

    has_routes = True
    epoch: str

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.port = 0
        self._links: set[_Child] = set()
        self._children: dict[str, _Child] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def aserve(self, *, log_level: str | int | None = None) -> None:
        """Run this sentinel until SIGTERM or SIGINT.

        A StrongroomError ends the process with one line and the error's exit status.
        """
        await run_until_stopped(self, log_level)

    # --- life ---

    async def _join(self, opening: AsyncExitStack) -> None:
        check_may_listen(self.settings)
        self.epoch = new_id()
        self._routes = Routes(self.path)
        for route in await self._kept.routes():
            for address, capabilities in route.addresses.items():
                self._routes.bind(route.system_id, address)
                self._routes.advertise(route.system_id, address, capabilities)
        host, port = self.settings.listener_host, self.settings.listener_port
        server = await listen(host, port, self._accept, self._health)
        self.port = server.sockets[0].getsockname()[1]
        opening.push_async_callback(self._close, server)
        log.info("%s listens on %s port %d", self.path, host, self.port)

    def describe(self) -> dict[str, Any]:
        """What an operator sees of the sentinel: its routes too."""
        nodes = [
            {"id": child.system_id, "attached": child.attached, "addresses": child.addresses}
            for child in self._routes.children.values()
        ]
        return {**super().describe(), "port": self.port, "nodes": nodes}

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        links = [child.link for child in self._links]
        for link in links:
            link.close()
        await asyncio.gather(*(link.closed.wait() for link in links))
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _health(self) -> bytes:
        return msgspec.json.encode({"status": "healthy", "active_connections": len(self._children)})

    def _accept(self, link: Link) -> None:
        if len(self._links) >= MAX_CHILDREN:
            link.close(1013, f"there are {MAX_CHILDREN} children already")
            return
        self._links.add(_Child(self, link))

    # --- what children ask of us ---

    def control(self, child: _Child, request: Envelope) -> None:
        """Answer a control frame."""
        frame = request.frame
        if isinstance(frame, NodeAttach):
            self._attach(child, request, frame)
        elif child.system_id is None:
            child.link.close(1008, "the first message is NodeAttach")
        elif isinstance(frame, NodeHeartbeat):
            ack = NodeHeartbeatAck(ok=True, routing_epoch=self.epoch)
            self._answer(child, request, ack)
        else:
            self._change_names(child, child.system_id, request)

    def _attach(self, child: _Child, request: Envelope, frame: NodeAttach) -> None:
        token = self.settings.admission_token
        reason = refusal(frame, child.link.name, self.id, child.link.token, token)
        if reason is None and child.system_id is not None:
            reason = "The link is attached already"
        if reason is not None:
            log.warning("%s was refused: %s", child.link.name, reason)
            ack = NodeAttachAck(ok=False, reason=reason)
            child.channel.control(answer(request, ack))
            child.link.close(1008, reason)
            return
        previous = self._children.get(frame.system_id)
        self._children[frame.system_id] = child
        if previous is not None:
            previous.link.close()
        child.attached(frame.system_id)
        self._routes.child(frame.system_id).attached = True
        ack = NodeAttachAck(
            ok=True,
            target_system_id=self.id,
            assigned_path=f"{self.path}/{frame.system_id}",
            target_physical_path=self.path,
            routing_epoch=self.epoch,
        )
        self._answer(child, request, ack)
        log.info("%s attached", frame.system_id)

    def _change_names(self, child: _Child, system_id: str, request: Envelope) -> None:
        frame, routes = request.frame, self._routes
        ack: ControlAck
        match frame:
            case AddressBind(address=address) if not is_address(address):
                ack = AddressBindAck(ok=False, address=address, reason="This is no address")
                self._answer(child, request, ack)
                return
            case AddressBind(address=address):
                routes.bind(system_id, address)
                ack = AddressBindAck(ok=True, address=address)
            case AddressUnbind(address=address):
                routes.unbind(system_id, address)
                ack = AddressUnbindAck(ok=True, address=address)
            case CapabilityAdvertise(address=address, capabilities=skills):
                routes.advertise(system_id, address, skills)
                ack = CapabilityAdvertiseAck(ok=True, address=address, capabilities=skills)
            case CapabilityWithdraw(address=address, capabilities=skills):
                routes.withdraw(system_id, address, skills)
                ack = CapabilityWithdrawAck(ok=True, address=address, capabilities=skills)
            case _:
                log.info("%s sent %s, which is not for us", system_id, type(frame).__name__)
                return
        self._spawn(self._remember(child, system_id, request, ack))

    async def _remember(
        self, child: _Child, system_id: str, request: Envelope, ack: ControlAck
    ) -> None:
        path = f"{self.path}/{system_id}"
        await self._kept.remember_child(self._routes.child(system_id), path)
        self._answer(child, request, ack)

    def _answer(self, child: _Child, request: Envelope, ack: ControlAck) -> None:
        ack.ref_id = request.id
        child.channel.control(
            Envelope(sid=self._sid, trace_id=request.trace_id, corr_id=request.corr_id, frame=ack)
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._wrote)

    def _wrote(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a change of routes was not stored", exc_info=task.exception())

    def detached(self, child: _Child, reason: str) -> None:
        """A link is gone: tell everyone who waits for an answer over it."""
        self._links.discard(child)
        if child.system_id is None:
            return
        if self._children.get(child.system_id) is child:
            del self._children[child.system_id]
            self._routes.left(child.system_id)
            log.info("%s is gone: %s", child.system_id, reason)
        for corr_id, call in child.under_way.items():
            text = f"The node that ran the call is gone, and it may have run: {reason}."
            self._nack(call, corr_id, CALL_INTERRUPTED, text)
        child.under_way.clear()

    # --- messages between children ---

    def route(self, source: _Child, envelope: Envelope, data: bytes, taken: Taken) -> None:
        """Pass a message on, as it came."""
        source.answered(envelope)
        try:
            if self._is_here(envelope):
                self._deliver(source.channel, envelope, data, taken)
                return
            child = self._find(envelope, source)
            flow_id = envelope.flow_id or ""
            child.channel.post(flow_id, data, taken)
        except (NoRoute, InvalidAddress, StreamStalled) as error:
            taken()
            self._undeliverable(envelope, error)
            return
        child.called(envelope)
        if ends_flow(envelope):
            child.channel.end_flow(flow_id)

    def _find(self, envelope: Envelope, source: _Child | None = None) -> _Child:
        system_id = self._routes.find(envelope.to, envelope.capabilities, envelope.id)
        child = self._children[system_id]
        if child is source:  # it sent this to us because it is not there
            raise NoRoute(f"Unroutable to {envelope.to}", code=NO_ROUTE)
        return child

    def _channel_to(self, envelope: Envelope) -> Channel | None:
        if self._is_here(envelope):
            return self._home
        child = self._find(envelope)
        child.called(envelope)
        return child.channel

    def _undeliverable(self, envelope: Envelope, error: FabricError) -> None:
        if isinstance(envelope.frame, Data) and envelope.reply_to and envelope.corr_id:
            call = _Call(envelope.id, envelope.reply_to, envelope.trace_id, is_stream=False)
            code = error.code if isinstance(error, NoRoute) else None
            code = STREAM_STALLED if isinstance(error, StreamStalled) else code or NO_ROUTE
            self._nack(call, envelope.corr_id, str(code), str(error))

    def _nack(self, call: _Call, corr_id: str, code: str, reason: str) -> None:
        nack = Envelope(
            sid=self._sid,
            trace_id=call.trace_id,
            to=call.reply_to,
            corr_id=corr_id,
            flow_flags=FlowFlag.RESET,
            frame=DeliveryAck(ok=False, code=code, reason=reason, ref_id=call.request_id),
        )
        self.post(nack)
