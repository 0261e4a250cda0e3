"""The caller's side of a call: what was sent and has no answer yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from threading import get_ident

import msgspec
from msgspec import UNSET, Raw, Struct

from strongroom.errors import (
    CallError,
    CallInterrupted,
    CallTimeout,
    FabricError,
    MessageTooLarge,
    NoRoute,
    ProtocolError,
    StreamStalled,
)
from strongroom.messaging.address import new_id
from strongroom.messaging.deadline import Deadline
from strongroom.messaging.delivery import AtMostOnce
from strongroom.messaging.depth import TOO_DEEP, is_too_deep
from strongroom.messaging.envelope import (
    Data,
    DeliveryAck,
    Envelope,
    NackCode,
    ReplyType,
)
from strongroom.messaging.flow import STALL_SECONDS, Release
from strongroom.messaging.places import own_place
from strongroom.messaging.rpc import (
    Request,
    Response,
    Target,
    encode,
    nack_error,
    read_response,
)
from strongroom.messaging.sender import Sender

TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 0.1
MAX_UNREAD_ITEMS = 1024


class _Stream:
    """The items of one stream that have arrived and have not been read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.items: deque[tuple[Response, Release]] = deque()
        self.error: FabricError | None = None
        self._arrived = asyncio.Event()
        self._loop = loop
        self._read_at = loop.time()
        self._watch: asyncio.TimerHandle | None = None

    def put(self, item: Response, release: Release, *, shares_flow: bool) -> None:
        self.items.append((item, release))
        self._arrived.set()
        if shares_flow and self._watch is None:
            self._watch = self._loop.call_later(STALL_SECONDS, self._check_reader)

    def fail(self, error: FabricError) -> None:
        self.error = self.error or error
        self._arrived.set()

    async def next(self, timeout: float) -> Response:
        while not self.items:
            if self.error is not None:
                raise self.error
            self._arrived.clear()
            with Deadline(self._loop, timeout), own_place.get():
                await self._arrived.wait()
        item, release = self.items.popleft()
        self._read_at = self._loop.time()
        release()
        return item

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        while self.items:
            _, release = self.items.popleft()
            release()

    def _check_reader(self) -> None:
        # A peer that sends everything on one flow cannot send anything while our reader pauses.
        waited = self._loop.time() - self._read_at
        if self.items and waited >= STALL_SECONDS:
            self.close()
            self.fail(StreamStalled(f"The stream was not read for {STALL_SECONDS:.0f} seconds."))
        else:
            pause = STALL_SECONDS - waited if self.items else STALL_SECONDS
            self._watch = self._loop.call_later(pause, self._check_reader)


class _Waiting(Struct):
    """A call that was sent and has no answer yet."""

    request_id: str
    to: str | None
    answer: asyncio.Future[Response] | _Stream

    def fail(self, error: FabricError) -> None:
        if isinstance(self.answer, _Stream):
            self.answer.fail(error)
        elif not self.answer.done():
            self.answer.set_exception(error)


class OutgoingCalls:
    """The calls that this node has made and that have no answer yet."""

    def __init__(self, sender: Sender, delivery: AtMostOnce) -> None:
        self._sender = sender
        self._delivery = delivery
        self._waiting: dict[str, _Waiting] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._is_stopped = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def call(
        self, target: Target, method: str, params: bytes, timeout: float = TIMEOUT_SECONDS
    ) -> Raw | None:
        """Call an operation and return its result as JSON, or None if it has none.

        Args:
            target: The agent to call.
            method: The operation's name.
            params: The arguments, encoded as JSON.
            timeout: Seconds to wait for the result.

        Raises:
            CallError: There is no result; the leaf says why.
            MessageTooLarge: The arguments do not fit into a message.
        """
        self.check_loop()
        if timeout <= 0:
            raise _timed_out(target, method, timeout)
        try:
            with Deadline(self._loop, timeout):
                while True:
                    try:
                        return await self._call_once(target, method, params)
                    except NoRoute:
                        if not self._sender.may_return(target.address):
                            raise
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise _timed_out(target, method, timeout) from None

    async def _call_once(self, target: Target, method: str, params: bytes) -> Raw | None:
        request = self._request(target, method, params, ReplyType.REPLY)
        answer: asyncio.Future[Response] = self._loop.create_future()
        corr_id = self._expect(request, answer)
        try:
            with own_place.get():
                await self._delivery.send(request)
                response = await answer
        except MessageTooLarge as error:
            raise _named(error, method) from None
        finally:
            del self._waiting[corr_id]
            self._delivery.settle(request.id)
        return response.value(method)

    async def stream(
        self, target: Target, method: str, params: bytes, timeout: float = TIMEOUT_SECONDS
    ) -> AsyncGenerator[Raw, None]:
        """Call a streaming operation and yield its items. `timeout` applies to each item.

        Raises:
            CallError: The stream ended with an error; the leaf says which.
        """
        self.check_loop()
        if timeout <= 0:
            raise _timed_out(target, method, timeout)
        request = self._request(target, method, params, ReplyType.STREAM)
        stream = _Stream(self._loop)
        corr_id = self._expect(request, stream)
        over = False
        try:
            item = await self._first(request, stream, timeout)
            while (value := item.value(method)) is not None:
                yield value
                item = await stream.next(timeout)
            over = True
        except TimeoutError:
            raise _timed_out(target, method, timeout) from None
        except MessageTooLarge as error:
            over = True
            raise _named(error, method) from None
        except CallError as error:
            over = not isinstance(error, StreamStalled)  # there it is we who stop
            raise
        finally:
            waiting = self._waiting.pop(corr_id)
            stream.close()
            if not over:
                self._leave(waiting, corr_id)

    async def _first(self, request: Envelope, stream: _Stream, timeout: float) -> Response:
        with Deadline(self._loop, timeout):
            while True:
                try:
                    await self._sender.send(request)
                    return await stream.next(timeout)
                except NoRoute:
                    if not self._sender.may_return(request.to):
                        raise
                    stream.error = None
                    await asyncio.sleep(RETRY_SECONDS)

    def _leave(self, waiting: _Waiting, corr_id: str) -> None:
        closed = DeliveryAck(ok=False, code=NackCode.STREAM_CLOSED, ref_id=waiting.request_id)
        reply_to = self._sender.reply_to  # by which the sentinel knows the call
        self._sender.send_now(
            Envelope(to=waiting.to, reply_to=reply_to, corr_id=corr_id, frame=closed)
        )

    def check_loop(self) -> None:
        """Check that the fabric is used where it was started.

        Raises:
            FabricError: This is another thread, or another event loop.
        """
        # A thread runs one loop at a time, and asking which takes a system call on Python 3.11.
        if get_ident() != self._thread or not self._loop.is_running():
            raise FabricError(
                "A fabric belongs to one event loop, and this was done in another.",
                remedy="asyncio.run_coroutine_threadsafe(..., loop), with the loop of the fabric",
            )

    def _request(self, target: Target, method: str, params: bytes, rtype: int) -> Envelope:
        corr_id = new_id()
        payload = encode(Request(method, Raw(params), corr_id))
        return Envelope(
            id=corr_id,
            trace_id=own_place.get().trace_id or corr_id,
            to=target.address,
            capabilities=list(target.capabilities) or None,
            reply_to=self._sender.reply_to,
            rtype=rtype,
            corr_id=corr_id,
            frame=Data(payload=Raw(payload)),
        )

    def _expect(self, request: Envelope, answer: asyncio.Future[Response] | _Stream) -> str:
        if self._is_stopped:
            raise CallInterrupted("This node has stopped; the call was not sent.")
        assert request.corr_id is not None
        self._waiting[request.corr_id] = _Waiting(request.id, request.to, answer)
        return request.corr_id

    def on_reply(self, envelope: Envelope, payload: Raw, release: Release) -> None:
        """A reply arrived. One that nobody waits for is dropped."""
        waiting = self._waiting.get(envelope.corr_id or "")
        if waiting is None:
            release()
            self.check_reader(envelope)
            return
        try:
            response = read_response(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            release()
            waiting.fail(ProtocolError(f"The answer cannot be read: {error}"))
            return
        if response.result is not UNSET and is_too_deep(bytes(response.result)):
            release()
            waiting.fail(ProtocolError(f"The answer cannot be read: {TOO_DEEP}."))
            return
        if isinstance(waiting.answer, _Stream):
            waiting.to = envelope.reply_to or waiting.to
            shares_flow = envelope.flow_id != envelope.corr_id
            if len(waiting.answer.items) < MAX_UNREAD_ITEMS:
                waiting.answer.put(response, release, shares_flow=shares_flow)
                return
            waiting.fail(
                StreamStalled(f"More than {MAX_UNREAD_ITEMS} items arrived and were not read.")
            )
        elif not waiting.answer.done():
            waiting.answer.set_result(response)
        release()

    def check_reader(self, envelope: Envelope) -> None:
        """End a stream that nobody reads any more, if `envelope` comes from one."""
        if envelope.reply_to is not None and envelope.corr_id not in self._waiting:
            closed = DeliveryAck(ok=False, code=NackCode.STREAM_CLOSED)
            self._sender.acknowledge(envelope, closed)

    def on_nack(self, envelope: Envelope, nack: DeliveryAck) -> None:
        """A request was not delivered, or its answer will not come."""
        waiting = self._waiting.get(envelope.corr_id or "")
        if waiting is not None and nack.ref_id == waiting.request_id:
            waiting.fail(nack_error(nack))

    def stop(self) -> None:
        """This node is stopping: fail the calls under way, and all that come."""
        self._is_stopped = True
        for waiting in self._waiting.values():
            waiting.fail(CallInterrupted("This node has stopped; the call may have run."))

    def on_link_lost(self, reason: str) -> None:
        """Fail the calls to other nodes that do not outlive the link."""
        for waiting in self._waiting.values():
            is_kept = self._delivery.keeps_calls and not isinstance(waiting.answer, _Stream)
            if not is_kept and waiting.to not in self._sender.bindings:
                waiting.fail(CallInterrupted(f"The call was cut off, and may have run: {reason}."))


def _timed_out(target: Target, method: str, timeout: float) -> CallTimeout:
    return CallTimeout(f"{target} did not answer {method}() within {timeout:g} seconds.")


def _named(error: MessageTooLarge, method: str) -> MessageTooLarge:
    if f"{method}()" in error.what:  # the agent says that it was the result
        return error
    return MessageTooLarge(f"The arguments of {method}() are too large: {error.what}")
