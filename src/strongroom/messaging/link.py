"""A WebSocket connection that carries whole messages.

picows is used here and in `listening.py`.

A link never blocks its caller: `send` hands bytes to the socket, and `writable` says when to stop.
`flow.Channel` obeys it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol

import picows
from picows import WSCloseCode, WSFrame, WSMsgType, WSTransport

from strongroom.errors import AttachFailed, AttachRefused, MessageTooLarge
from strongroom.messaging.envelope import MAX_MESSAGE
from strongroom.settings import ATTACH_PATH

SILENCE_SECONDS = 30.0
"""Seconds without a message after which we drop a link, as Naylence's peers do."""
PING_SECONDS = 20.0
CLOSE_SECONDS = 2.0
CONNECT_SECONDS = 10.0
MAX_FRAGMENTS = 1024
MAX_UNSENT_BYTES = 16 * 1024 * 1024

# picows reports each connection here. What matters of it reaches our own log through `on_closed`.
_picows_log = logging.getLogger("strongroom.picows")
_picows_log.setLevel(logging.CRITICAL)


OPTIONS: dict[str, Any] = {
    "websocket_handshake_timeout": CONNECT_SECONDS,
    "logger_name": _picows_log,
    "enable_auto_ping": True,
    "auto_ping_idle_timeout": PING_SECONDS,
    "auto_ping_reply_timeout": PING_SECONDS,
    "enable_auto_pong": False,  # it would answer a peer that never reads
    "max_frame_size": MAX_MESSAGE,
}
"""What picows is asked for at both ends of a link."""

_REMEDIES: dict[HTTPStatus, str] = {
    HTTPStatus.UNAUTHORIZED: "the sentinel's FAME_ADMISSION_TOKEN",
    HTTPStatus.FORBIDDEN: "the sentinel's address, or FAME_ALLOWED_HOSTS at the sentinel",
    HTTPStatus.NOT_FOUND: f"FAME_DIRECT_ADMISSION_URL=ws://HOST:PORT{ATTACH_PATH}",
}


class Receiver(Protocol):
    """Receives the events of a link."""

    def on_message(self, data: bytes) -> None:
        """A whole message arrived."""

    def on_writable(self) -> None:
        """The socket accepts bytes again."""

    def on_closed(self, reason: str) -> None:
        """The link is gone. No more events follow."""


class Listener(Protocol):
    """Receives the connections of children."""

    def on_link(self, link: Link) -> None:
        """A child has connected."""

    def health(self) -> bytes:
        """The JSON with which health checks are answered."""

    def refusal(self, headers: Mapping[str, str]) -> HTTPStatus | None:
        """The status with which a request is refused; None if it is welcome."""

    def has_token(self, token: str | None) -> bool:
        """Whether a child that offers `token` may have a link."""


class Link(picows.WSListener):
    """One connection, from the upgrade to the end.

    `receiver` takes its messages from the moment it is set; `flow.Channel` sets itself. `token` is
    what the other end offered.
    """

    def __init__(
        self, name: str, listener: Listener | None = None, token: str | None = None
    ) -> None:
        self.name = name
        self.token = token
        self.writable = True
        self.closed = asyncio.Event()
        self.receiver: Receiver | None = None
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: WSTransport | None = None
        self._fragments: list[bytes] = []
        self._batch: list[bytes] = []
        self._reason = ""
        self._heard = self._loop.time()
        self._answered: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    def send(self, data: bytes) -> None:
        """Hand a message to the socket. On a closed link it is discarded.

        Raises:
            MessageTooLarge: It is larger than a link can carry.
        """
        if len(data) > MAX_MESSAGE:
            check_size(data)
        if self._transport is None:
            return
        if not self._batch:
            # Messages of one turn of the loop share one write: under load, system calls would cost
            # more than everything else.
            self._loop.call_soon(self._send_batch)
        self._batch.append(data)

    def _send_batch(self) -> None:
        batch, self._batch = self._batch, []
        transport = self._transport
        if not batch or transport is None or transport.is_close_frame_sent:
            return
        if len(batch) == 1:
            transport.send(WSMsgType.BINARY, batch[0])
        else:
            join = _masked_frames if transport.is_client_side else _frames
            transport.underlying_transport.write(join(batch))
        if not self.writable and self._unsent() > MAX_UNSENT_BYTES:
            self.close(1008, "the peer does not read")

    def _unsent(self) -> int:
        assert self._transport is not None
        return self._transport.underlying_transport.get_write_buffer_size()

    def close(self, code: int = 1000, reason: str = "normal closure") -> None:
        """Close the link with a code and a reason, after what was sent has left."""
        transport = self._transport
        if transport is None or transport.is_close_frame_sent:
            return
        self._reason = self._reason or reason
        self._send_batch()
        shown = reason.encode(errors="replace")[:120].decode(errors="ignore")  # no half character
        transport.send_close(WSCloseCode(code), shown)
        self._disconnect(transport)

    @property
    def ends(self) -> tuple[tuple[str, int], tuple[str, int]] | None:
        """The addresses and ports of the peer and of this end, while the link is up."""
        if self._transport is None:
            return None
        transport = self._transport.underlying_transport
        peer, here = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        return (peer[0], peer[1]), (here[0], here[1])

    def admit(self) -> None:
        """The peer has attached: the limits for strangers no longer hold."""
        if self._transport is not None:
            stranger: Any = self._transport.underlying_transport.get_protocol()
            stranger.admit()

    def pause_reading(self) -> None:
        """Leave what the peer sends in the socket."""
        if self._transport is not None:
            self._transport.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.underlying_transport.resume_reading()

    async def answers(self, timeout: float) -> bool:
        """Whether the peer answers a ping, or sends anything else, within `timeout` seconds."""
        if self._transport is None:
            return False
        self._answered = self._answered or asyncio.Event()
        self._transport.send_ping(b"")
        try:
            async with asyncio.timeout(timeout):
                await self._answered.wait()
        except TimeoutError:
            return False
        return not self.closed.is_set()

    def _end_probe(self) -> None:
        if self._answered is not None:
            self._answered.set()
            self._answered = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """(picows) The upgrade has finished."""
        self._transport = transport
        self._timer = self._loop.call_later(SILENCE_SECONDS, self._check_silence)
        if self._listener is not None:
            self._listener.on_link(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """(picows) A frame arrived: a message, a part of one, or the end."""
        kind = frame.msg_type
        if self._answered is not None:
            self._end_probe()
        if kind is WSMsgType.CLOSE:
            self._reason = self._reason or frame.get_close_reason() or "closed by the peer"
            self._acknowledge_close(transport, frame)
        elif transport.is_close_frame_sent:
            return
        elif kind is WSMsgType.BINARY or kind is WSMsgType.TEXT:
            if self._fragments:
                self.close(1002, "a message began inside another")
            elif frame.fin:
                self._take(frame.get_payload_as_bytes())
            else:
                self._fragments.append(frame.get_payload_as_bytes())
        elif kind is WSMsgType.CONTINUATION:
            self._continue(frame)
        elif kind is WSMsgType.PING and self.writable:  # else our answers would pile up
            transport.send_pong(frame.get_payload_as_bytes())

    def _continue(self, frame: WSFrame) -> None:
        if not self._fragments:
            self.close(1002, "a continuation without a beginning")
            return
        self._fragments.append(frame.get_payload_as_bytes())
        too_many = len(self._fragments) > MAX_FRAGMENTS
        if too_many or sum(map(len, self._fragments)) > MAX_MESSAGE:
            self.close(1009, f"a message is larger than {MAX_MESSAGE} bytes")
        elif frame.fin:
            message = b"".join(self._fragments)
            self._fragments.clear()
            self._take(message)

    def _take(self, message: bytes) -> None:
        self._heard = self._loop.time()
        if self.receiver is not None:
            self.receiver.on_message(message)

    def _acknowledge_close(self, transport: WSTransport, frame: WSFrame) -> None:
        if not transport.is_close_frame_sent:
            transport.send_close(frame.get_close_code())
        self._disconnect(transport)

    def _disconnect(self, transport: WSTransport) -> None:
        transport.disconnect()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_SECONDS, transport.disconnect, False)

    def _check_silence(self) -> None:
        left = self._heard + SILENCE_SECONDS - self._loop.time()
        if left <= 0:
            self.close(1001, f"no message for {SILENCE_SECONDS:.0f} seconds")
        else:
            self._timer = self._loop.call_later(left, self._check_silence)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """(picows) The connection is gone."""
        self.closed.set()
        self._end_probe()
        if self._timer is not None:
            self._timer.cancel()
        self._fragments.clear()
        self._transport = None
        if self.receiver is not None:
            self.receiver.on_closed(self._reason or "the connection was lost")

    def pause_writing(self) -> None:
        """(picows) The socket's buffer is full."""
        self.writable = False

    def resume_writing(self) -> None:
        """(picows) The socket's buffer has room again."""
        self.writable = True
        if self.receiver is not None:
            self.receiver.on_writable()


class Loopback:
    """A link from a node to itself, so that local messages take the same path as all others."""

    name = "this node"
    writable = True

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.receiver: Receiver | None = None
        self._loop = asyncio.get_running_loop()

    def send(self, data: bytes) -> None:
        """Deliver a message in the loop's next turn."""
        check_size(data)
        if not self.closed.is_set():
            self._loop.call_soon(self._deliver, data)

    def close(self, code: int = 1000, reason: str = "normal closure") -> None:
        """Close the link. Messages not yet delivered are lost."""
        if not self.closed.is_set():
            self.closed.set()
            assert self.receiver is not None
            self.receiver.on_closed(f"{reason} ({code})")

    def pause_reading(self) -> None:
        """Nothing to do: a node respects its own credit."""

    def resume_reading(self) -> None:
        """Nothing to do."""

    def _deliver(self, data: bytes) -> None:
        if self.receiver is not None and not self.closed.is_set():
            self.receiver.on_message(data)


def _frames(messages: list[bytes]) -> bytes:
    """Binary messages as WebSocket frames (RFC 6455, 5.2). picows writes only one at a time."""
    parts: list[bytes] = []
    for data in messages:
        parts += (_head(len(data), 0), data)
    return b"".join(parts)


def _masked_frames(messages: list[bytes]) -> bytes:
    """The same for a client, which masks each message with four random bytes (5.3)."""
    parts: list[bytes] = []
    masks = os.urandom(4 * len(messages))
    for place, data in enumerate(messages):
        mask, size = masks[4 * place : 4 * place + 4], len(data)
        pad = int.from_bytes((mask * (size // 4 + 1))[:size])
        parts += (_head(size, 0x80), mask, (int.from_bytes(data) ^ pad).to_bytes(size))
    return b"".join(parts)


def _head(size: int, mask_bit: int) -> bytes:
    if size < 126:  # noqa: PLR2004 - the RFC's numbers
        return bytes((0x82, mask_bit | size))
    if size < 1 << 16:
        return bytes((0x82, mask_bit | 126)) + size.to_bytes(2)
    return bytes((0x82, mask_bit | 127)) + size.to_bytes(8)


def check_size(data: bytes) -> None:
    """Raise MessageTooLarge if `data` is larger than a link can carry."""
    if len(data) > MAX_MESSAGE:
        raise MessageTooLarge(
            f"The message has {len(data)} bytes; a link carries at most {MAX_MESSAGE}.",
            remedy="send it in parts, or as a stream",
        )


async def dial(url: str, token: str | None = None) -> Link:
    """Connect to the sentinel at `url`, offering `token` if there is one.

    Raises:
        AttachFailed: Nothing answers there.
        AttachRefused: The sentinel refused the upgrade.
    """
    headers = [("Sec-WebSocket-Protocol", f"bearer, {token}")] if token else None
    try:
        _, listener = await picows.ws_connect(
            lambda: Link(url),
            url,
            extra_headers=headers,
            **OPTIONS,
            max_redirects=0,  # a redirect would carry the token elsewhere
        )
    except picows.WSInvalidStatusError as error:
        status = error.response.status if error.response else "no status"
        remedy = _REMEDIES.get(error.response.status) if error.response else None
        raise AttachRefused(f"{url} refused the connection ({status}).", remedy=remedy) from error
    except (OSError, picows.WSError, TimeoutError, ValueError) as error:
        hint = "; wss:// needs a proxy with TLS there" if url.startswith("wss:") else ""
        raise AttachFailed(
            f"No sentinel answers at {url} ({str(error) or type(error).__name__}).",
            remedy=f"start it, or correct FAME_DIRECT_ADMISSION_URL{hint}",
        ) from error
    if not isinstance(listener, Link):  # the connection was lost during the handshake
        raise AttachFailed(f"{url} closed the connection at once.", remedy="again, when it is up")
    return listener
