"""The connections of one provider, and calls that wait while the server is away."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import time
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from strongroom.errors import (
    EngineRefused,
    StorageError,
    StoreClosed,
    StoreForked,
    StoreUnavailable,
)
from strongroom.settings import StorageSettings

RETRY_SECONDS = 0.1
LOOPBACK = {"", "localhost", "127.0.0.1", "::1"}  # no host: a socket in the filesystem

_PASSING_STATES = {
    "25006",  # read only: it has become a standby
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53300",  # too many connections
    "57P01",  # shut down by an administrator
    "57P02",  # another session crashed
    "57P03",  # starting up
}
_NAMED_STATEMENT_LOST = {"26000", "42P05"}  # a pooler has changed the server's session
_UNKNOWN_PARAMETER = {"08P01", "42704"}  # a pooler refuses what was sent at the start

_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)

log = logging.getLogger(__name__)

Connection: TypeAlias = "asyncpg.Connection[Any]"


class Connections:
    """Runs statements, each on a connection that nobody else uses meanwhile.

    A connection that breaks is replaced, and the statement is run again until its deadline. So
    every statement must give the same result when it is run twice. No transaction is open between
    two calls, so that a process which stops holds no lock.
    """

    def __init__(self, settings: StorageSettings) -> None:
        """Connect nowhere yet."""
        assert settings.url is not None
        self.timeout_seconds = settings.timeout_seconds
        self.has_pooler = False
        """Whether sessions change between two statements: a pooler in transaction mode."""
        self._settings = settings
        self._url = settings.url
        self._ssl = _ssl(settings)
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(max(1, settings.pool - 1))  # one more listens
        self._process = os.getpid()
        self._is_closed = False

    def deadline(self) -> float:
        """Until when a call that begins now waits, by `time.monotonic`."""
        return time.monotonic() + self.timeout_seconds

    def check(self) -> None:
        """Raise an error if the provider was closed, or made before this process was forked."""
        if self._is_closed:
            raise StoreClosed("The provider is closed.")
        if os.getpid() != self._process:
            raise StoreForked(
                "The provider was opened before this process was forked.",
                remedy="open a provider in the child",
            )

    async def fetch(
        self, statement: str, *arguments: object, deadline: float | None = None
    ) -> list[Any]:
        """The rows of a statement.

        Raises:
            StoreUnavailable: The server did not answer until the deadline.
            EngineRefused: The role may not do this.
            asyncpg.PostgresError: The functions of the schema refused it (`SR...`).
        """
        if deadline is None:
            deadline = self.deadline()
        may_have_run = False
        cause: BaseException | None = None
        async with self._slots:
            while (left := deadline - time.monotonic()) > 0:
                self.check()
                try:
                    return await self._attempt(statement, arguments, left)
                except _Away as away:
                    may_have_run, cause = may_have_run or away.may_have_run, away.__cause__
                except asyncpg.PostgresError as error:
                    if _sqlstate(error).startswith("SR"):
                        raise
                    raise _explained(error) from error
                except ssl.SSLCertVerificationError as error:
                    raise EngineRefused(
                        f"The server's certificate is not accepted: {error.verify_message}.",
                        remedy="FAME_STORAGE_TLS_CA_FILE, and the name in FAME_STORAGE_URL",
                    ) from error
                await asyncio.sleep(min(RETRY_SECONDS, left))
        stored = "It is not known whether this" if may_have_run else "Nothing"
        raise StoreUnavailable(
            f"The PostgreSQL server did not answer within {self.timeout_seconds} seconds. "
            f"{stored} was stored.",
            remedy="start it, or allow more time with FAME_STORAGE_TIMEOUT",
        ) from cause

    async def _attempt(
        self, statement: str, arguments: tuple[object, ...], seconds: float
    ) -> list[Any]:
        try:
            connection = await self._take(seconds)
        except (*_ERRORS, asyncpg.PostgresError) as error:
            if _is_passing(error):
                raise _Away(may_have_run=False) from error
            raise
        try:
            # Half of the time: a connection that fell silent leaves the rest to another.
            rows = await connection.fetch(statement, *arguments, timeout=seconds / 2)
        except (*_ERRORS, asyncpg.PostgresError) as error:
            if _sqlstate(error) in _NAMED_STATEMENT_LOST:
                self._note_pooler()
            elif not _is_passing(error):
                self._give_back(connection)
                raise
            connection.terminate()
            raise _Away(may_have_run=True) from error
        except BaseException:
            connection.terminate()  # it is in the middle of an answer
            raise
        self._give_back(connection)
        return rows

    async def run_script(self, script: str) -> None:
        """Run several statements as one transaction. It must be possible to run it twice."""
        connection = await self.connect(self.timeout_seconds)
        try:
            await connection.execute(script, timeout=self.timeout_seconds)
        except asyncpg.PostgresError as error:
            raise _explained(error) from error
        finally:
            connection.terminate()

    async def connect(self, seconds: float) -> Connection:
        """A new connection, which the caller closes."""
        settings = self._settings
        connection: Connection = await asyncpg.connect(
            self._url,
            password=_password(settings),
            ssl=self._ssl,
            timeout=seconds,
            statement_cache_size=0 if self.has_pooler else 100,
            server_settings=None if self.has_pooler else {"jit": "off"},
            target_session_attrs=SessionAttribute.read_write,
        )
        return connection

    async def close(self) -> None:
        """End all connections. Statements that still run fail as StoreClosed."""
        self._is_closed = True
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()

    async def _take(self, seconds: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        try:
            return await self.connect(seconds)
        except asyncpg.PostgresError as error:
            if self.has_pooler or _sqlstate(error) not in _UNKNOWN_PARAMETER:
                raise
            self._note_pooler()
            return await self.connect(seconds)

    def _give_back(self, connection: Connection) -> None:
        if self._is_closed:
            connection.terminate()
        else:
            self._idle.append(connection)

    def _note_pooler(self) -> None:
        if not self.has_pooler:
            log.info("There is a pooler before the server: statements are not kept prepared.")
        self.has_pooler = True
        while self._idle:
            self._idle.pop().terminate()


class _Away(Exception):
    """The server is away, or busy with something else, and may be back soon."""

    def __init__(self, *, may_have_run: bool) -> None:
        super().__init__()
        self.may_have_run = may_have_run


def _sqlstate(error: BaseException) -> str:
    return (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return _sqlstate(error).startswith("08") or _sqlstate(error) in _PASSING_STATES
    # A wrong argument, or a server that is not the one it should be.
    return not isinstance(error, asyncpg.DataError | ssl.SSLCertVerificationError)


def _explained(error: asyncpg.PostgresError) -> StorageError:
    """An error of the server as one of ours."""
    state = _sqlstate(error)
    if state[:2] == "28" or state in {"3D000", "42501"}:
        return EngineRefused(
            f"The PostgreSQL server refuses this program: {error}.",
            remedy="correct FAME_STORAGE_URL or the password, or what the role may do",
        )
    return StoreUnavailable(
        f"The PostgreSQL server could not do this: {error} ({state}). Nothing of it was stored.",
        remedy="look at the server's log",
    )


def _password(settings: StorageSettings) -> Any:
    """The password, read again for each connection, so that it can be changed."""
    path = settings.credentials_file
    if path is None:
        return settings.credentials
    return lambda: _first_line(path)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise EngineRefused(
            f"The password in FAME_STORAGE_CREDENTIALS_FILE cannot be read: {error.strerror}."
        ) from error


def _ssl(settings: StorageSettings) -> ssl.SSLContext | bool:
    """How connections are encrypted. On loopback they are not, unless certificates are given."""
    assert settings.url is not None
    url = urlsplit(settings.url)
    named = [url.netloc.rpartition("@")[2], *parse_qs(url.query).get("host", [])]
    hosts = [host for host in ",".join(named).split(",") if not host.startswith("/")]  # a socket
    names = {re.sub(r":\d*$", "", host).strip("[]") for host in hosts}
    files = (settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
    if not settings.tls or (names <= LOOPBACK and not any(files)):
        return False
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file is not None:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context
