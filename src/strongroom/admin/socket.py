"""The admin socket: what an operator asks of a data directory goes through whoever owns it.

The owner listens on a Unix socket whose name follows from the directory's device and inode, so
that both sides find it by themselves. A request is one line of JSON, `{"command": ...,
"arguments": ...}`; the answer is a line for each item or progress, and one at the end. Only the
owner's own user, and root, are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from strongroom.admin import commands
from strongroom.admin.commands import Progress
from strongroom.errors import DirectoryInUse, OwnerUnreachable, SettingsError, StrongroomError
from strongroom.settings import StorageSettings
from strongroom.storage.provider import StorageProvider, open_provider
from strongroom.storage.sqlite.provider import SqliteProvider

MAX_LINE = 128 * 1024 * 1024  # a value of 64 MiB in base64 fits
MAX_PATH = 107  # of a Unix socket
STATUS = "status"
STALLED = 60.0
"""An operator who takes nothing for so long is left: an export of his holds back rotations."""

log = logging.getLogger("strongroom.nodes")

Ask = Callable[..., AsyncIterator[Any]]
"""Called with a command and its arguments by name; gives items as JSON, and Progress."""


class Request(msgspec.Struct):
    """What is asked."""

    command: str
    arguments: dict[str, Any] = {}


class Reply(msgspec.Struct, omit_defaults=True):
    """One line of an answer: an item, a progress, an error (type and message), or the end."""

    item: msgspec.Raw = msgspec.Raw()
    progress: Progress | None = None
    error: dict[str, Any] | None = None
    end: bool = False


# --- the owner's side -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def admin_socket(
    provider: StorageProvider, describe: Callable[[], dict[str, Any]]
) -> AsyncIterator[None]:
    """Answer operators within the block, if `provider` owns a directory.

    Args:
        provider: What commands work on.
        describe: What `strongroom status` shows.
    """
    if not isinstance(provider, SqliteProvider):
        yield
        return
    talks: set[asyncio.Task[None]] = set()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            await _Talk(provider, describe, reader, writer).hold()
        finally:
            talks.discard(task)
            writer.close()

    async with contextlib.AsyncExitStack() as listening:
        try:
            path = _place(provider.files.directory)
            path.unlink(missing_ok=True)  # of an owner that was killed: the directory is ours now
            server = await asyncio.start_unix_server(welcome, path, limit=MAX_LINE)
        except OSError as error:
            log.warning("there is no admin socket: %s", error)
        else:
            listening.callback(path.unlink, missing_ok=True)
            listening.callback(server.close)
        try:
            yield
        finally:
            for task in talks:
                task.cancel()
            if talks:
                await asyncio.wait(talks)


class _Talk:
    """One operator's connection."""

    def __init__(
        self,
        provider: SqliteProvider,
        describe: Callable[[], dict[str, Any]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._provider = provider
        self._describe = describe
        self._reader = reader
        self._writer = writer

    async def hold(self) -> None:
        """Answer one request after the other. An answer ends when the operator leaves."""
        if _peer(self._writer.get_extra_info("socket")) not in {0, os.getuid()}:
            log.warning("another user was refused at the admin socket")
            return
        with contextlib.suppress(OSError, asyncio.CancelledError):
            line = await self._reader.readline()
            while line:
                following = asyncio.ensure_future(self._reader.readline())
                answering = asyncio.ensure_future(self._answer(line))
                try:
                    await asyncio.wait([following, answering], return_when=FIRST_COMPLETED)
                    line = await following if answering.done() else b""
                finally:
                    answering.cancel()
                    following.cancel()
                    await asyncio.gather(answering, following, return_exceptions=True)

    async def _answer(self, line: bytes) -> None:
        try:
            request = msgspec.json.decode(line, type=Request)
            if request.command == STATUS:
                await self._send(Reply(item=msgspec.Raw(msgspec.json.encode(self._describe()))))
            else:
                await self._run(request)
            await self._send(Reply(end=True))
        except StrongroomError as error:
            await self._send(Reply(error=error.as_json()))
        except (TypeError, ValueError) as error:  # arguments that no command takes
            await self._send(Reply(error=StrongroomError(str(error)).as_json()))
        except OSError:
            raise
        except Exception as error:
            log.exception("an operator's command failed")
            failure = StrongroomError(
                f"{type(error).__name__}: {error}.", remedy="see the node's log"
            )
            await self._send(Reply(error=failure.as_json()))

    async def _run(self, request: Request) -> None:
        items = commands.run(self._provider, request.command, request.arguments)
        async with contextlib.aclosing(items):
            async for item in items:
                if isinstance(item, Progress):
                    await self._send(Reply(progress=item))
                else:
                    await self._send(Reply(item=msgspec.Raw(msgspec.json.encode(item))))

    async def _send(self, reply: Reply) -> None:
        self._writer.write(msgspec.json.encode(reply) + b"\n")
        async with asyncio.timeout(STALLED):
            await self._writer.drain()


def _peer(connection: socket.socket) -> int:
    """The user at the other end; where the system does not tell, the folder keeps others out."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


# --- where the socket is ----------------------------------------------------------------------


def _place(directory: Path) -> Path:
    """Where the owner of a directory listens; the folder is made if it is not there."""
    path = _sockets(directory)[0]
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700)
    found = path.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path.parent} is not a folder of this user's alone")
    return path


def _sockets(directory: Path) -> list[Path]:
    """Where the owner of a directory may listen, the best first."""
    found = directory.stat()
    name = f"{found.st_dev:x}-{found.st_ino:x}.sock"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{found.st_uid}")
    folders = [runtime / "strongroom"] if os.access(runtime, os.W_OK) else []
    folders.append(Path(f"/tmp/strongroom-{found.st_uid}"))  # noqa: S108  # its owner is checked
    paths = [folder / name for folder in folders]
    return [path for path in paths if len(os.fsencode(path)) <= MAX_PATH]


# --- the operator's side ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def operate(settings: StorageSettings, *, running: bool = False) -> AsyncIterator[Ask]:
    """What asks about the directory of `settings`: through its owner, else by opening it.

    Args:
        settings: Name the directory.
        running: Only a running node can answer.

    Raises:
        SettingsError: No directory is named, or no node has kept data there.
        OwnerUnreachable: No node runs there, or it does not answer.
    """
    directory = _directory(settings)
    if connection := await _connect(_sockets(directory)):
        reader, writer = connection
        try:
            yield lambda command, **arguments: _ask(reader, writer, command, arguments)
        finally:
            writer.close()
        return
    if running:
        raise OwnerUnreachable(
            f"No node runs on {directory}, or it has no admin socket.", remedy="strongroom sentinel"
        )
    try:
        provider = await open_provider(settings)
    except DirectoryInUse as error:
        raise OwnerUnreachable(
            f"{directory} is in use by a process that has no admin socket.", remedy="stop it"
        ) from error
    async with contextlib.AsyncExitStack() as asked:
        asked.push_async_callback(provider.close)

        def ask(command: str, **arguments: Any) -> AsyncIterator[Any]:
            items = _run_here(provider, command, arguments)
            asked.push_async_callback(items.aclose)  # one that was left holds its store open
            return items

        yield ask


def _directory(settings: StorageSettings) -> Path:
    if settings.directory is None:
        raise SettingsError(
            "FAME_STORAGE_DB_DIRECTORY is not set.",
            remedy="--directory data, or FAME_STORAGE_DB_DIRECTORY=data",
        )
    if not any(settings.directory.glob("*.db")):
        raise SettingsError(
            f"No node has kept data in {settings.directory}.",
            remedy="another directory in FAME_STORAGE_DB_DIRECTORY",
        )
    return settings.directory


async def _connect(
    sockets: Iterable[Path],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    for path in sockets:
        with contextlib.suppress(OSError):
            return await asyncio.open_unix_connection(path, limit=MAX_LINE)
    return None


async def _run_here(
    provider: StorageProvider, command: str, arguments: dict[str, Any]
) -> AsyncGenerator[Any, None]:
    async with contextlib.aclosing(commands.run(provider, command, arguments)) as items:
        async for item in items:
            yield item if isinstance(item, Progress) else msgspec.json.encode(item)


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    command: str,
    arguments: dict[str, Any],
) -> AsyncIterator[Any]:
    try:
        writer.write(msgspec.json.encode(Request(command, arguments)) + b"\n")
        await writer.drain()
        while line := await reader.readline():
            reply = msgspec.json.decode(line, type=Reply)
            if reply.end:
                return
            if reply.error is not None:
                raise StrongroomError.from_json(reply.error)
            yield reply.progress or bytes(reply.item)
    except OSError as error:
        raise OwnerUnreachable(f"The node does not answer any more: {error}.") from error
    raise OwnerUnreachable("The node stopped in mid-answer.", remedy="strongroom status")
