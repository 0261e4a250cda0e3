"""Sentinels and nodes in one process, joined by links in memory, with a clock that jumps ahead.

Timeouts of minutes pass in milliseconds, in the order in which they would pass in real time.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from strongroom.errors import AttachFailed
from strongroom.messaging.link import Listener, Loopback
from strongroom.nodes import children, uplink


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the loop's clock ahead to its next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("Nothing will ever happen: the test waits for no timer.")
        self.now += max(timeout, 1e-6)  # each turn takes a microsecond
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop for code that uses no sockets and no threads."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., None]:
    """Run an async test on a `VirtualTimeLoop`."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


class MemoryLink(Loopback):
    """One end of a link in memory."""

    ends = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.peer: MemoryLink = self
        self.is_silent = False
        self.context = contextvars.copy_context()

    @classmethod
    def pair(cls, name: str) -> tuple[MemoryLink, MemoryLink]:
        """Both ends of a new link."""
        here, there = cls(name), cls(name)
        here.peer, there.peer = there, here
        return here, there

    def send(self, data: bytes) -> None:
        if not self.closed.is_set():
            self._loop.call_soon(self.peer._deliver, data, context=self.peer.context)

    def admit(self) -> None:
        """Nothing to do: only the port limits strangers."""

    async def answers(self, timeout: float) -> bool:
        if self.is_silent:
            await asyncio.sleep(timeout)
        return not (self.is_silent or self.closed.is_set())

    def close(self, code: int = 1000, reason: str = "normal closure") -> None:
        self._loop.call_soon(self._end, f"{reason} ({code})")  # after what was sent

    def _end(self, reason: str) -> None:
        for end in (self, self.peer):
            if not end.closed.is_set():
                end.closed.set()
                if end.receiver is not None:
                    end.receiver.on_closed(reason)


class MemoryNetwork:
    """The listeners by their ports. `dial` and `listen` have the signatures of `messaging.link`."""

    def __init__(self) -> None:
        self.listeners: dict[int, Listener] = {}
        self.links: list[MemoryLink] = []
        self._contexts: dict[int, contextvars.Context] = {}

    async def dial(self, url: str, _token: str | None = None) -> MemoryLink:
        host, _, path = url.partition("/fame/")
        port = int(host.rpartition(":")[2])
        listener = self.listeners.get(port)
        if listener is None:
            raise AttachFailed(f"No sentinel answers at {url}.")
        here, there = MemoryLink.pair(path.rpartition("/")[2])
        self.links.append(here)
        there.context = self._contexts.get(port, there.context)
        there.context.copy().run(listener.on_link, there)  # type: ignore[arg-type]
        return here

    async def listen(self, _host: str, port: int, listener: Listener) -> MemoryPort:
        port = port or 40_000 + len(self.listeners)
        self.listeners[port] = listener
        self._contexts[port] = contextvars.copy_context()
        return MemoryPort(self, port)

    def raw_child(self, port: int, name: str = "raw") -> RawPeer:
        """A child that a test plays by hand."""
        here, there = MemoryLink.pair(name)
        self.listeners[port].on_link(there)  # type: ignore[arg-type]
        return RawPeer(here)


class MemoryPort:
    """What `listen` returns."""

    def __init__(self, network: MemoryNetwork, port: int) -> None:
        self._network = network
        self.number = port

    def close(self) -> None:
        self._network.listeners.pop(self.number, None)


class RawPeer:
    """One end of a link whose messages a test writes and reads itself."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link.receiver = self

    def say(self, frame: dict[str, Any], message_id: str = "m", **envelope: Any) -> None:
        """Send an envelope."""
        self.link.send(json.dumps({"id": message_id, **envelope, "frame": frame}).encode())

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next envelope with a frame of this type; others are skipped."""
        while True:
            envelope = await self.messages.get()
            if envelope["frame"]["type"] == kind:
                return envelope

    def on_message(self, data: bytes) -> None:
        self.messages.put_nowait(json.loads(data))

    def on_writable(self) -> None:
        pass

    def on_closed(self, reason: str) -> None:
        self.closed.set_result(reason)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> MemoryNetwork:
    """Let sentinels listen, and nodes dial, in memory."""
    memory = MemoryNetwork()
    monkeypatch.setattr(uplink, "dial", memory.dial)
    monkeypatch.setattr(children, "listen", memory.listen)
    return memory
