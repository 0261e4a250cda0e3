"""The caller's half of a call: what was sent and is not yet answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Container

import msgspec
from msgspec import Raw, Struct

from strongroom.errors import (
    CallError,
    CallInterrupted,
    CallTimeout,
    FabricError,
    NoRoute,
    ProtocolError,
    StreamStalled,
)
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import Data, DeliveryAck, Envelope, ReplyType
from strongroom.messaging.flow import STALL, Taken
from strongroom.messaging.rpc import (
    STREAM_CLOSED,
    Request,
    Response,
    Target,
    encode,
    nack_error,
    read_response,
)

TIMEOUT = 30.0
RETRY = 0.1
MAX_ITEMS = 1024

Send = Callable[[Envelope], Awaitable[None]]
"""Sends towards `to`, and returns when the message has left; as long as that takes."""
Post = Callable[[Envelope], None]
"""Sends towards `to` without waiting; what cannot be sent now is lost."""


class _Stream:
    """The items of one stream that have arrived and were not yet read."""

    def __init__(self) -> None:
        self.items: deque[tuple[Response, Taken]] = deque()
        self.error: FabricError | None = None
        self._arrived = asyncio.Event()
        self._read_at = asyncio.get_running_loop().time()
        self._watch: asyncio.TimerHandle | None = None

    def put(self, item: Response, taken: Taken, *, shares_flow: bool) -> None:
        self.items.append((item, taken))
        self._arrived.set()
        if shares_flow and self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(STALL, self._check_reader)

    def fail(self, error: FabricError) -> None:
        self.error = self.error or error
        self._arrived.set()

    async def next(self, timeout: float) -> Response:
        while not self.items:
            if self.error is not None:
                raise self.error
            self._arrived.clear()
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        item, taken = self.items.popleft()
        self._read_at = asyncio.get_running_loop().time()
        taken()
        return item

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        while self.items:
            _, taken = self.items.popleft()
            taken()

    def _check_reader(self) -> None:
        # Where the sender has one flow for everything, our reader's pause stops all its others.
        loop = asyncio.get_running_loop()
        waited = loop.time() - self._read_at
        if self.items and waited >= STALL:
            self.close()
            self.fail(StreamStalled(f"The stream was not read for {STALL:.0f} seconds."))
        else:
            pause = STALL - waited if self.items else STALL
            self._watch = loop.call_later(pause, self._check_reader)


class _Waiting(Struct):
    """A call that was sent and is not answered."""

    request_id: str
    to: str | None
    answer: asyncio.Future[Response] | _Stream

    def fail(self, error: FabricError) -> None:
        if isinstance(self.answer, _Stream):
            self.answer.fail(error)
        elif not self.answer.done():
            self.answer.set_exception(error)


class Calls:
    """The calls that this node has made and that are not yet answered."""

    def __init__(
        self,
        send: Send,
        post: Post,
        reply_to: Callable[[], str],
        *,
        may_retry: Callable[[], bool],
        settled: Callable[[str], None],
    ) -> None:
        self._send = send
        self._post = post
        self._reply_to = reply_to
        self._may_retry = may_retry
        self._settled = settled
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def call(
        self, target: Target, method: str, params: bytes, timeout: float = TIMEOUT
    ) -> Raw | None:
        """Call an operation and return its result, as JSON; None for no result.

        Raises:
            CallError: It gave none; the leaf says why.
            MessageTooLarge: The arguments do not fit into a message.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        return await self._call_once(target, method, params)
                    except NoRoute:
                        if not self._may_retry():
                            raise
                        await asyncio.sleep(RETRY)
        except TimeoutError:
            raise _timed_out(target, method, timeout) from None

    async def _call_once(self, target: Target, method: str, params: bytes) -> Raw | None:
        request = self._request(target, method, params, ReplyType.REPLY)
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        corr_id = self._expect(request, answer)
        try:
            await self._send(request)
            response = await answer
        finally:
            del self._waiting[corr_id]
            self._settled(request.id)
        return response.value()

    async def stream(
        self, target: Target, method: str, params: bytes, timeout: float = TIMEOUT
    ) -> AsyncGenerator[Raw, None]:
        """Call a streaming operation and yield its items; `timeout` holds for each of them.

        Raises:
            CallError: The stream ended with an error; the leaf says which.
        """
        request = self._request(target, method, params, ReplyType.STREAM)
        stream = _Stream()
        corr_id = self._expect(request, stream)
        over = False
        try:
            item = await self._first(request, stream, timeout)
            while (value := item.value()) is not None:
                yield value
                item = await stream.next(timeout)
            over = True
        except TimeoutError:
            raise _timed_out(target, method, timeout) from None
        except CallError as error:
            over = not isinstance(error, StreamStalled)  # then it is we who stop
            raise
        finally:
            waiting = self._waiting.pop(corr_id)
            stream.close()
            if not over:
                self._leave(waiting, corr_id)

    async def _first(self, request: Envelope, stream: _Stream, timeout: float) -> Response:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    await self._send(request)
                    return await stream.next(timeout)
                except NoRoute:
                    if not self._may_retry():
                        raise
                    stream.error = None
                    await asyncio.sleep(RETRY)

    def _leave(self, waiting: _Waiting, corr_id: str) -> None:
        closed = DeliveryAck(ok=False, code=STREAM_CLOSED, ref_id=waiting.request_id)
        self._post(Envelope(to=waiting.to, corr_id=corr_id, frame=closed))

    def _request(self, target: Target, method: str, params: bytes, rtype: int) -> Envelope:
        corr_id = new_id()
        payload = encode(Request(method, Raw(params), corr_id))
        return Envelope(
            id=corr_id,
            trace_id=corr_id,
            to=target.address,
            capabilities=list(target.capabilities) or None,
            reply_to=self._reply_to(),
            rtype=rtype,
            corr_id=corr_id,
            frame=Data(payload=Raw(payload)),
        )

    def _expect(self, request: Envelope, answer: asyncio.Future[Response] | _Stream) -> str:
        assert request.corr_id is not None
        self._waiting[request.corr_id] = _Waiting(request.id, request.to, answer)
        return request.corr_id

    def on_reply(self, envelope: Envelope, payload: Raw, taken: Taken) -> None:
        """A reply came; one that nobody waits for is dropped."""
        waiting = self._waiting.get(envelope.corr_id or "")
        if waiting is None:
            taken()
            return
        try:
            response = read_response(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            taken()
            waiting.fail(ProtocolError(f"The answer cannot be read: {error}"))
            return
        if isinstance(waiting.answer, _Stream):
            waiting.to = envelope.reply_to or waiting.to
            shares_flow = envelope.flow_id != envelope.corr_id
            if len(waiting.answer.items) < MAX_ITEMS:
                waiting.answer.put(response, taken, shares_flow=shares_flow)
                return
            waiting.fail(StreamStalled(f"More than {MAX_ITEMS} items came and were not read."))
        elif not waiting.answer.done():
            waiting.answer.set_result(response)
        taken()

    def on_nack(self, envelope: Envelope, nack: DeliveryAck) -> None:
        """A request could not be delivered, or its answer will not come."""
        waiting = self._waiting.get(envelope.corr_id or "")
        if waiting is not None and nack.ref_id == waiting.request_id:
            waiting.fail(nack_error(nack))

    def interrupt(self, reason: str, *, spare: Container[str | None], only_streams: bool) -> None:
        """Fail the calls under way, or only the streams, but none to addresses in `spare`."""
        for waiting in self._waiting.values():
            is_meant = isinstance(waiting.answer, _Stream) or not only_streams
            if is_meant and waiting.to not in spare:
                waiting.fail(CallInterrupted(f"The call was cut off and may have run: {reason}."))


def _timed_out(target: Target, method: str, timeout: float) -> CallTimeout:
    return CallTimeout(f"{target} did not answer {method}() within {timeout:g} seconds.")
