"""A node's link to its sentinel: made at start, watched, and made again when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from strongroom.admission.handshake import Membership, attach_request, membership
from strongroom.errors import AttachFailed, AttachRefused
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import (
    ControlAck,
    Envelope,
    Frame,
    NodeAttachAck,
    NodeHeartbeat,
    NodeHeartbeatAck,
    ReplyType,
)
from strongroom.messaging.flow import Channel, Deliver, Taken
from strongroom.messaging.link import dial
from strongroom.settings import Settings

ANSWER = 10.0
HEARTBEAT = 15.0
FIRST_DELAY = 0.1
LAST_DELAY = 1.0

log = logging.getLogger("strongroom.nodes")

Ack = TypeVar("Ack", bound=ControlAck)


class Uplink:
    """The way to the sentinel.

    `joined` is called with each new membership before messages flow, and with whether the sentinel
    has forgotten this node's names; `lost` when the link breaks.
    """

    def __init__(
        self,
        settings: Settings,
        node_id: str,
        *,
        deliver: Deliver,
        joined: Callable[[Membership], None],
        rebind: Callable[[], Awaitable[None]],
        lost: Callable[[str], None],
    ) -> None:
        assert settings.admission_url is not None
        self._url = f"{settings.admission_url.rstrip('/')}/{node_id}"
        self._token = settings.admission_token
        self._attempts = settings.max_initial_attempts
        self._node_id = node_id
        self._deliver = deliver
        self._joined = joined
        self._rebind = rebind
        self._lost = lost
        self._channel: Channel | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._epoch: str | None = None
        self.epoch_changed = float("-inf")
        self._asked: dict[str, tuple[str, asyncio.Future[ControlAck]]] = {}
        self._keeper: asyncio.Task[None] | None = None

    @property
    def channel(self) -> Channel | None:
        """The channel while there is one."""
        return self._channel if self._up.is_set() else None

    async def wait(self) -> Channel:
        """The channel, as soon as there is one."""
        await self._up.wait()
        assert self._channel is not None
        return self._channel

    async def start(self) -> None:
        """Attach for the first time, and keep attached from then on.

        Raises:
            AttachFailed: As often as FAME_SESSION_MAX_INITIAL_ATTEMPTS says (0: for ever).
            AttachRefused: The sentinel said no.
        """
        attempt, delay = 1, FIRST_DELAY
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
        channel, self._channel = self._channel, None  # so that nobody calls this a loss
        if channel is not None:
            channel.link.close()
            await channel.link.closed.wait()

    async def request(self, frame: Frame, kind: type[Ack]) -> Ack:
        """Ask the sentinel something and return its answer.

        Raises:
            AttachFailed: It did not answer in time.
        """
        if self._channel is None:
            raise AttachFailed("There is no link to the sentinel now.")
        return await self._ask(self._channel, frame, kind)

    async def _ask(self, channel: Channel, frame: Frame, kind: type[Ack]) -> Ack:
        envelope = Envelope(corr_id=new_id(), rtype=ReplyType.ACK, frame=frame)
        answer: asyncio.Future[ControlAck] = asyncio.get_running_loop().create_future()
        self._asked[envelope.id] = (envelope.corr_id or "", answer)
        try:
            channel.control(envelope)
            async with asyncio.timeout(ANSWER):
                ack = await answer
        except TimeoutError:
            what = type(frame).__name__
            raise AttachFailed(f"{self._url} did not answer {what} in {ANSWER:.0f} s.") from None
        finally:
            del self._asked[envelope.id]
        if not isinstance(ack, kind):
            raise AttachFailed(f"{self._url} answered {type(frame).__name__} with something else.")
        return ack

    def _on_envelope(self, channel: Channel, envelope: Envelope, data: bytes, taken: Taken) -> None:
        frame = envelope.frame
        if not isinstance(frame, ControlAck):
            self._deliver(channel, envelope, data, taken)
            return
        taken()
        if isinstance(frame, NodeHeartbeatAck):
            self._see_epoch(frame.routing_epoch)
        elif isinstance(frame, NodeAttachAck) and frame.ok:
            # Now, and not when the task awakes: what follows in the same read is for our new path.
            self._joined(membership(frame))
        corr_id, answer = self._asked.get(frame.ref_id or "", ("", None))
        if answer is not None and not answer.done() and corr_id == envelope.corr_id:
            answer.set_result(frame)

    def _on_closed(self, channel: Channel, reason: str) -> None:
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(AttachFailed(f"{self._url} closed the link: {reason}."))
        if channel is self._channel:
            self._channel = None
            self._up.clear()
            self._down.set()
            self._lost(reason)

    def _see_epoch(self, epoch: str | None) -> bool:
        if epoch is None or epoch == self._epoch:
            return False
        if self._epoch is not None:
            self.epoch_changed = asyncio.get_running_loop().time()
        self._epoch = epoch
        return True

    async def _attach(self) -> None:
        link = await dial(self._url, self._token)
        channel = Channel(link, self._on_envelope, self._on_closed)
        try:
            ack = await self._ask(channel, attach_request(self._node_id), NodeAttachAck)
            place = membership(ack)
            self._channel = channel
            self._down.clear()
            if self._see_epoch(place.epoch):
                await self._rebind()
        except BaseException:
            self._channel = None
            link.close()
            raise
        if link.closed.is_set():
            self._channel = None
            self._down.set()
            return
        self._up.set()
        log.info("attached to %s as %s", place.sentinel_id, place.path)

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._down.wait()
            if self._channel is not None:
                self._channel.control(Envelope(corr_id=new_id(), frame=NodeHeartbeat()))
            else:
                await self._heal()

    async def _heal(self) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                await self._attach()
            except AttachFailed as error:
                log.info("not attached: %s", error)
                delay = await _back_off(delay)
            else:
                return


async def _back_off(delay: float) -> float:
    await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
    return min(2 * delay, LAST_DELAY)
