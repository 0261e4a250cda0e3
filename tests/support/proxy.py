"""A TCP proxy that can cut and stall what passes through it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes on to `target`, unless it is cut or stalled."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.tls = tls
        self.port = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.cut_after: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break every connection at once, as a reset does."""
        for writer in self._writers:
            writer.transport.abort()

    def swallow(self) -> None:
        """Let all further answers on the connections that exist now vanish."""
        self._silent |= self._clients

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.tls is not None:  # as a PostgreSQL server is asked for it
                await reader.readexactly(8)
                writer.write(b"S")
                await writer.start_tls(self.tls)
            onward = await asyncio.open_connection("127.0.0.1", self.target)
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
            return
        pair = {writer, onward[1]}
        self._writers |= pair
        self._clients.add(writer)
        for source, sink in ((reader, onward[1]), (onward[0], writer)):
            task = asyncio.create_task(self._pass_on(source, sink, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pair: set[asyncio.StreamWriter],
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self.flowing.wait()
                if sink in self._silent:
                    continue
                if self.cut_after is not None and len(data) > self.cut_after:
                    sink.write(data[: self.cut_after])  # a part of a frame, and then the end
                    await sink.drain()
                    break
                sink.write(data)
                await sink.drain()
        for writer in pair:
            writer.transport.abort()
        self._writers -= pair
        self._clients -= pair

    async def stop(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(target: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(target, tls)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
