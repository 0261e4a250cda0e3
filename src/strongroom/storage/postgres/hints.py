"""Notifications between processes. They only hint that something changed, and may be lost."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Protocol

import asyncpg

from strongroom.errors import StorageError
from strongroom.storage.postgres.connections import Connection, Connections

GATHER_SECONDS = 0.005
POLL_SECONDS = 1.0
POLL_BEHIND_POOLER_SECONDS = 0.1
RETRY_SECONDS = 1.0
HINT_PARTS = 200  # a notification has less than 8000 bytes

# Outside the transaction that wrote, which would wait for a lock of the whole server, and without
# waiting for the disk.
_TELL = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"

log = logging.getLogger(__name__)


class HintListener(Protocol):
    """Hears of hints about one namespace."""

    def on_hint(self, revision: int) -> None:
        """Some process has written up to `revision`."""


class Hints:
    """Tells other processes of commits, and hears of theirs, on a connection for nothing else."""

    def __init__(self, connections: Connections, space: str) -> None:
        self.poll_seconds = POLL_SECONDS
        """How often those who wait look for themselves."""
        self._connections = connections
        self._channel = f"strongroom {space}"
        self._listeners: dict[int, HintListener] = {}
        self._connection: Connection | None = None
        self._ended = asyncio.Event()
        self._untold: dict[int, int] = {}
        self._unheard: dict[str, float] = {}
        self._listening: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, as soon as the server can be reached."""
        self._listening = asyncio.create_task(self._listen(), name="hints of PostgreSQL")

    def subscribe(self, namespace: int, listener: HintListener) -> None:
        """Let `listener` hear of a namespace."""
        self._listeners[namespace] = listener

    def unsubscribe(self, namespace: int) -> None:
        """The inverse of `subscribe`."""
        self._listeners.pop(namespace, None)

    def tell(self, namespace: int, revision: int) -> None:
        """Tell other processes, soon, that a namespace has come to `revision`."""
        self._untold[namespace] = revision
        if self._telling is None and self._connection is not None:
            self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Stop, and tell what is left."""
        if self._telling is not None:
            await asyncio.wait([self._telling])
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    async def _tell(self) -> None:
        try:
            while self._untold and self._connection is not None:
                await asyncio.sleep(GATHER_SECONDS)
                some = [self._untold.popitem() for _ in range(min(HINT_PARTS, len(self._untold)))]
                hint = " ".join(f"{namespace}:{revision}" for namespace, revision in some)
                self._notice_pooler()
                self._unheard[hint] = time.monotonic()
                await self._connection.fetch(_TELL, self._channel, hint, timeout=RETRY_SECONDS)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.debug("a hint was not told: %s", error)
        finally:
            self._telling = None

    def _notice_pooler(self) -> None:
        """Look more often if own hints are not heard: a pooler has changed the session."""
        if self._unheard and min(self._unheard.values()) < time.monotonic() - POLL_SECONDS:
            self.poll_seconds = POLL_BEHIND_POOLER_SECONDS
            self._unheard.clear()

    async def _listen(self) -> None:
        while True:
            try:
                self._connection = await self._connections.connect(RETRY_SECONDS)
                self._ended.clear()
                self._connection.add_termination_listener(self._on_end)
                await self._connection.add_listener(self._channel, self._on_notification)
                self._on_reconnect()
                await self._ended.wait()
            except (
                OSError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                StorageError,
            ) as error:
                log.debug("no hints for now: %s", error)
            finally:
                if self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
            await asyncio.sleep(RETRY_SECONDS)

    def _on_end(self, _connection: Any) -> None:
        self._ended.set()

    def _on_reconnect(self) -> None:
        for listener in self._listeners.values():
            listener.on_hint(2**63)  # they may have missed something

    def _on_notification(self, _connection: Any, _process: int, _channel: str, hint: Any) -> None:
        if self._unheard.pop(hint, None) is not None:
            self.poll_seconds = POLL_SECONDS
        for part in hint.split():
            namespace, _, revision = part.partition(":")
            if listener := self._listeners.get(int(namespace)):
                listener.on_hint(int(revision))
