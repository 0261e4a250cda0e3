"""Where a sentinel listens, and what strangers may do until they attach.

A stranger is a connection whose node has not attached yet. There are few of them, for a short time,
and they send little; the next one waits in the kernel until there is a place.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from http import HTTPStatus
from typing import Any

import aiofastnet
import picows

from strongroom.background import BackgroundTasks
from strongroom.errors import ListenFailed
from strongroom.messaging.address import is_node_id
from strongroom.messaging.link import OPTIONS, Link, Listener
from strongroom.peers_log import peers_log
from strongroom.settings import ATTACH_PATH, HEALTH_PATH

MAX_STRANGERS = 128
STRANGER_SECONDS = 3.0
"""Seconds from the connection to NodeAttach."""
STRANGER_BYTES = 64 * 1024
"""Bytes that a stranger may send: the upgrade, and NodeAttach."""
RESERVED_DESCRIPTORS = 64
"""Descriptors that connections leave to the rest of the process, which has stores to open."""
PAUSE_SECONDS = 1.0
"""Seconds for which nothing is accepted when descriptors run out."""
READ_BUFFER_BYTES = 2048
"""What a link reads into at first; the buffer grows as messages need it."""

_DOWNSTREAM = f"{ATTACH_PATH}/"
_ATTACH = ATTACH_PATH.removesuffix("downstream")

log = peers_log(__name__)


class Port:
    """A port on which children connect.

    picows's own server accepts without limits, and at the limit of descriptors it takes a whole
    processor. So we accept connections here, and hand each to a protocol of picows.
    """

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._sockets = [each.dup() for each in server.sockets]
        self._strangers: set[Stranger] = set()
        self._arriving = BackgroundTasks("a connection was not taken")
        self._pause: asyncio.TimerHandle | None = None
        self._is_accepting = False
        self.number: int = self._sockets[0].getsockname()[1]
        for each in self._sockets:
            each.listen(MAX_STRANGERS)
        self._accept_more()

    def close(self) -> None:
        """Accept no more connections, and end those that have not attached."""
        self._stop_accepting()
        if self._pause is not None:
            self._pause.cancel()
        for stranger in list(self._strangers):
            stranger.end()
        for each in self._sockets:
            each.close()
        self._sockets.clear()
        self._server.close()

    def on_stranger_gone(self, stranger: Stranger) -> None:
        """A stranger has attached, or its connection is gone: there is a place for another."""
        self._strangers.discard(stranger)
        if self._pause is None:
            self._accept_more()

    def _accept_more(self) -> None:
        self._pause = None
        if not self._is_accepting and len(self._strangers) < MAX_STRANGERS:
            self._is_accepting = True
            for each in self._sockets:
                self._loop.add_reader(each, self._accept, each)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for each in self._sockets:
                self._loop.remove_reader(each)

    def _accept(self, listening: socket.socket) -> None:
        # One connection each turn, so that those who are attached have theirs too.
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._rest(str(error))
            return
        # A new descriptor has the lowest free number: a high one says that few are left.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and connection.fileno() >= limit - RESERVED_DESCRIPTORS:
            connection.close()
            self._rest(f"the process may have {limit} descriptors, and almost all are in use")
            return
        protocol = self._server._protocol_factory()  # type: ignore[attr-defined]  # noqa: SLF001 - picows gives it to nobody else
        stranger = Stranger(self, protocol)
        self._strangers.add(stranger)
        if len(self._strangers) >= MAX_STRANGERS:
            self._stop_accepting()
        self._arriving.start(stranger.arrive(connection))

    def _rest(self, reason: str) -> None:
        log.warning("no connections are accepted for a moment: %s", reason)
        self._stop_accepting()
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._accept_more)


class Stranger(asyncio.BufferedProtocol):
    """Passes the bytes of a new connection to picows's protocol, and counts them.

    When the node attaches, picows's protocol takes its place.
    """

    def __init__(self, port: Port, protocol: Any) -> None:
        self._port = port
        self._protocol = protocol
        self._transport: Any = None
        self._bytes_left = STRANGER_BYTES
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STRANGER_SECONDS, self.end, "no NodeAttach came")

    async def arrive(self, connection: socket.socket) -> None:
        """Read what `connection` sends."""
        try:
            loop = asyncio.get_running_loop()
            await aiofastnet.connect_accepted_socket(loop, lambda: self, connection)
        except OSError as error:  # it is gone already
            log.debug("a connection ended at once: %s", error)
            connection.close()
            self._leave()

    def admit(self) -> None:
        """The node has attached: step aside."""
        self._transport.set_protocol(self._protocol)
        self._leave()

    def end(self, reason: str = "the sentinel stops") -> None:
        """Close the connection, with a reason if it is a link already."""
        link: Link | None = self._protocol.listener
        if link is not None:
            link.close(1008, reason)
        elif self._transport is not None:
            self._transport.abort()

    def _leave(self) -> None:
        self._timer.cancel()
        self._port.on_stranger_gone(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """(asyncio) The connection is up."""
        self._transport = transport
        self._protocol.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """(asyncio) The connection is gone."""
        self._leave()
        self._protocol.connection_lost(error)

    def get_buffer(self, sizehint: int) -> Any:
        """(asyncio) Where the next bytes go."""
        return self._protocol.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """(asyncio) Bytes have arrived."""
        self._bytes_left -= nbytes
        if self._bytes_left < 0:
            self.end(f"more than {STRANGER_BYTES} bytes came before NodeAttach")
            self._transport.abort()
        else:
            self._protocol.buffer_updated(nbytes)

    def eof_received(self) -> bool | None:
        """(asyncio) The other end sends no more."""
        closes: bool | None = self._protocol.eof_received()
        return closes

    def pause_writing(self) -> None:
        """(asyncio) The socket's buffer is full."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """(asyncio) The socket's buffer has room again."""
        self._protocol.resume_writing()


async def listen(host: str, port: int, listener: Listener) -> Port:
    """Accept the connections of children, and answer health checks.

    Raises:
        ListenFailed: The port is taken, or the host is not one of this machine.
    """

    def upgrade(request: picows.WSUpgradeRequest) -> Any:
        path = request.path.decode("ascii", "replace").partition("?")[0]
        refused = listener.refusal(request.headers)
        if refused is not None:
            return _refuse(refused)
        if path == HEALTH_PATH:
            return _answer(HTTPStatus.OK, listener.health())
        child = path.removeprefix(_DOWNSTREAM)
        if child == path or not is_node_id(child):
            is_attach = path.startswith(_ATTACH)
            return _refuse(HTTPStatus.FORBIDDEN if is_attach else HTTPStatus.NOT_FOUND)
        protocols = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        offered = [name.strip() for name in protocols]
        token = offered[1] if offered[0] == "bearer" and len(offered) > 1 else None
        if not listener.has_token(token):
            return _refuse(HTTPStatus.UNAUTHORIZED)
        chosen = {"Sec-WebSocket-Protocol": "bearer"} if offered[0] == "bearer" else None
        response = picows.WSUpgradeResponse.create_101_response(chosen)
        return picows.WSUpgradeResponseWithListener(response, Link(child, listener, token))

    options = {**OPTIONS, "websocket_handshake_timeout": None}  # strangers have a time limit
    options["read_buffer_init_size"] = READ_BUFFER_BYTES
    try:
        server = await picows.ws_create_server(upgrade, host, port, start_serving=False, **options)
        return Port(server)
    except OSError as error:
        raise ListenFailed(
            f"Cannot listen on {host} port {port}: {error.strerror or error}.",
            remedy="another FAME_LISTENER_PORT, or stop what uses this one",
        ) from error


def _refuse(status: HTTPStatus) -> picows.WSUpgradeResponseWithListener:
    return _answer(status, b'{"detail":"' + status.phrase.encode() + b'"}')


def _answer(status: HTTPStatus, body: bytes) -> picows.WSUpgradeResponseWithListener:
    headers = {"Content-Type": "application/json"}
    if status is HTTPStatus.OK:
        response = picows.WSUpgradeResponse.create_ok_response(body, headers)
    else:
        response = picows.WSUpgradeResponse.create_error_response(status, body, headers)
    return picows.WSUpgradeResponseWithListener(response, None)
