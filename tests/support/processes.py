"""Sentinels and agents in their own processes, started as a service manager starts them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "fabric" / "programs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def attach_url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/fame/v1/attach/ws/downstream"


def environment(**variables: object) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FAME_")}
    return inherited | {key: str(value) for key, value in variables.items()}


class Program:
    """A process that runs one of tests/fabric/programs, or another program."""

    def __init__(
        self, name: str, directory: Path, *arguments: str, python: str = sys.executable
    ) -> None:
        self.command = [python, str(PROGRAMS / name), *arguments]
        label = name.replace("/", "-")[-24:]  # the path of a socket has to be short
        self.log = directory / f"{label}.log"
        self._notify = directory / f"{label}.notify"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, **variables: object) -> None:
        """Start, without waiting for anything."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, env=environment(**variables), stdout=log, stderr=log
            )

    async def start_and_wait(self, **variables: object) -> None:
        """Start, and wait until the program says that it is ready."""
        self._notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(self._notify))
            ready.setblocking(False)
            await self.start(NOTIFY_SOCKET=self._notify, **variables)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(20):
                said = asyncio.ensure_future(loop.sock_recv(ready, 100))
                assert self.process is not None
                over = asyncio.ensure_future(self.process.wait())
                await asyncio.wait([said, over], return_when=asyncio.FIRST_COMPLETED)
                over.cancel()
            assert said.done(), self.log.read_text()
            assert said.result() == b"READY=1"

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.wait()

    async def wait(self) -> int:
        """The exit status."""
        assert self.process is not None
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def running(*programs: Program) -> AsyncIterator[None]:
    """Kill what is left of `programs` at the end."""
    try:
        yield
    finally:
        for program in programs:
            if program.process is not None and program.process.returncode is None:
                program.process.kill()
                await program.process.wait()
