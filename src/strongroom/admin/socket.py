"""The admin socket: operator commands on a data directory run in the node that uses it.

A running node listens on the Unix socket `.admin.sock` in its data directory. A request is one line
of JSON, `{"command": ..., "arguments": ...}`. The answer is one line for each item or progress
report, and a last line with the end or an error. While a command works in silence, the node sends
an empty object every second, so that operators notice a node that is stuck.

Before a side sends a byte, it asks the kernel which user is at the other end. A node answers its
own user and root. Operators trust a node of their own user and of root; root also trusts a node of
the directory's owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ParamSpec

import msgspec

from strongroom.admin import delivery, health, keys, records
from strongroom.admin.command import Administered, Command, Described, Progress
from strongroom.disk.inspect import is_directory
from strongroom.errors import NotSupported, OwnerUnreachable, SettingsError, StrongroomError
from strongroom.settings import StorageSettings
from strongroom.storage.provider import BUILT_IN, StorageProvider

MAX_LINE_BYTES = 128 * 1024 * 1024  # a value of 64 MiB in base64 fits
MAX_PATH_BYTES = 107  # of a Unix socket
SOCKET = ".admin.sock"
BEAT_SECONDS = 1.0
SILENT_SECONDS = 8.0
"""A node that sends nothing for this long is stuck."""
STALLED_SECONDS = 60.0
"""We drop an operator who stops reading for this long: an unfinished export blocks rotations."""

COMMANDS: dict[str, Command[...]] = {
    command.name: command
    for module in (records, keys, health, delivery)
    for command in vars(module).values()
    if isinstance(command, Command)
}

P = ParamSpec("P")

log = logging.getLogger("strongroom.nodes")


class Request(msgspec.Struct):
    """A command's name, and its arguments as a JSON object."""

    command: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class Reply(msgspec.Struct, omit_defaults=True):
    """One line of an answer: an item, a progress report, an error, the end, or a sign of life."""

    item: msgspec.Raw = msgspec.Raw()
    progress: Progress | None = None
    error: dict[str, Any] | None = None
    end: bool = False


# --- the node's side --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def admin_socket(provider: StorageProvider, node: Described) -> AsyncIterator[None]:
    """Answer operators within the block, if `provider` keeps its data in a directory.

    Args:
        provider: What commands work on.
        node: What `strongroom status` describes.
    """
    directory = provider.settings.directory
    if directory is None or not provider.needs_directory:
        yield
        return
    administered = Administered(provider.settings, provider, node)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await _Connection(administered, reader, writer).serve()
        finally:
            serving.discard(task)
            writer.close()

    async with contextlib.AsyncExitStack() as listening:
        try:
            listener = listening.enter_context(_listener(directory))
            server = await asyncio.start_unix_server(serve, sock=listener, limit=MAX_LINE_BYTES)
        except OSError as error:
            log.warning("there is no admin socket: %s", error)
        else:
            listening.callback(server.close)
        try:
            yield
        finally:
            for task in serving:
                task.cancel()
            if serving:
                await asyncio.wait(serving)


class _Connection:
    """One operator's connection to this node."""

    def __init__(
        self, node: Administered, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._node = node
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        """Answer one request after another. An answer is cancelled when the operator leaves."""
        if _peer(self._writer.get_extra_info("socket")) not in {0, os.geteuid()}:
            log.warning("another user was refused at the admin socket")
            return
        with contextlib.suppress(OSError, asyncio.CancelledError):
            line = await self._reader.readline()
            while line:
                following = asyncio.ensure_future(self._reader.readline())
                answering = asyncio.ensure_future(self._answer(line))
                try:
                    while not await _first_of(following, answering):
                        if not self._writer.transport.get_write_buffer_size():
                            self._writer.write(b"{}\n")
                    line = await following if answering.done() else b""
                finally:
                    answering.cancel()
                    following.cancel()
                    await asyncio.gather(answering, following, return_exceptions=True)

    async def _answer(self, line: bytes) -> None:
        try:
            await self._run(msgspec.json.decode(line, type=Request))
            await self._send(Reply(end=True))
        except StrongroomError as error:
            await self._send(Reply(error=error.as_json()))
        except msgspec.DecodeError as error:  # the line is not a request
            await self._send(Reply(error=StrongroomError(f"{error}.").as_json()))
        except OSError:
            raise
        except Exception as error:
            log.exception("an operator's command failed")
            failure = StrongroomError(
                f"{type(error).__name__}: {error}.", remedy="see the node's log"
            )
            await self._send(Reply(error=failure.as_json()))

    async def _run(self, request: Request) -> None:
        command = COMMANDS.get(request.command)
        if command is None:
            raise NotSupported(
                f"This node has no command {request.command!r}.",
                remedy="the same version of Strongroom as the node's",
            )
        async with contextlib.aclosing(_encoded(command, self._node, request.arguments)) as items:
            async for item in items:
                if isinstance(item, Progress):
                    await self._send(Reply(progress=item))
                else:
                    await self._send(Reply(item=msgspec.Raw(item)))

    async def _send(self, reply: Reply) -> None:
        self._writer.write(msgspec.json.encode(reply) + b"\n")
        async with asyncio.timeout(STALLED_SECONDS):
            await self._writer.drain()


async def _first_of(*futures: asyncio.Future[Any]) -> bool:
    """Wait for one of the futures, for a second. Returns whether one is done."""
    done, _ = await asyncio.wait(futures, timeout=BEAT_SECONDS, return_when=FIRST_COMPLETED)
    return bool(done)


# --- where the socket is ----------------------------------------------------------------------


@contextlib.contextmanager
def _listener(directory: Path) -> Iterator[socket.socket]:
    """The socket of a directory's node, which has locked the directory. Deleted after the block."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)  # of a node that was killed
    with socket.socket(socket.AF_UNIX) as listener, _short(path) as short:
        listener.bind(short)
        try:
            path.chmod(0o600)
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A path of at most 107 bytes for a socket: if need be, one through a descriptor (on Linux)."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _peer(connection: socket.socket) -> int:
    """The user at the other end. Without SO_PEERCRED, the directory's mode keeps others out."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.geteuid()
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


# --- the operator's side ----------------------------------------------------------------------


class NodeClient:
    """Runs commands in a running node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(
        self, command: Command[P], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[Any, None]:
        """Run a command. Yields its items as JSON, and `Progress` in between.

        >>> async for item in client.request(records.stats, namespace="notes"):
        ...     print(item)

        Raises:
            OwnerUnreachable: The node stopped, or refuses this user.
        """
        request = Request(command.name, command.pack(*args, **kwargs))
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                self._writer.write(msgspec.json.encode(request) + b"\n")
                await self._writer.drain()
            while line := await self._line():
                reply = msgspec.json.decode(line, type=Reply)
                if reply.end:
                    return
                if reply.error is not None:
                    raise StrongroomError.from_json(reply.error)
                if reply.progress or reply.item:
                    yield reply.progress or bytes(reply.item)
        except TimeoutError:
            raise _stuck() from None
        except OSError as error:
            raise OwnerUnreachable(
                f"The connection to the node was lost: {error}.", remedy="strongroom status"
            ) from error
        raise OwnerUnreachable(
            "The node stopped before its answer was complete.", remedy="strongroom status"
        )

    async def _line(self) -> bytes:
        async with asyncio.timeout(SILENT_SECONDS):
            return await self._reader.readline()


def _stuck() -> OwnerUnreachable:
    return OwnerUnreachable(
        f"The node has not answered for {SILENT_SECONDS:g} s: its process is stopped or stuck.",
        remedy="see the node's log, and start it again",
    )


class DirectoryClient:
    """Runs commands on a directory that no node uses."""

    def __init__(self, directory: Administered) -> None:
        self._directory = directory
        self._requests: list[AsyncGenerator[Any, None]] = []

    def request(
        self, command: Command[P], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[Any, None]:
        """Run a command, as `NodeClient.request` does."""
        items = _encoded(command, self._directory, command.pack(*args, **kwargs))
        self._requests.append(items)
        return items

    async def aclose(self) -> None:
        """Close the provider, after every request: an unfinished export keeps its store open."""
        for items in self._requests:
            await items.aclose()
        await self._directory.close()


async def _encoded(
    command: Command[...], node: Administered, arguments: msgspec.Raw
) -> AsyncGenerator[Any, None]:
    """Run a command: its items as JSON, and `Progress` in between."""
    try:
        async with contextlib.aclosing(command.run(node, arguments)) as items:
            async for item in items:
                yield item if isinstance(item, Progress) else msgspec.json.encode(item)
    except StrongroomError:
        raise
    except ValueError as error:  # a value is not allowed
        raise StrongroomError(f"{error}.", remedy="another value") from error


Client = NodeClient | DirectoryClient


@contextlib.asynccontextmanager
async def connect(settings: StorageSettings) -> AsyncIterator[Client]:
    """Connect to the node that uses a data directory, or else work on the directory itself.

    Args:
        settings: Name the directory. Without a running node, its profile and master key, too.

    Raises:
        SettingsError: No directory is named, or no node has kept data there.
    """
    directory = checked_directory(settings)
    if directory and (streams := await _open_socket(directory)):
        reader, writer = streams
        try:
            yield NodeClient(reader, writer)
        finally:
            writer.close()
        return
    async with contextlib.aclosing(DirectoryClient(Administered(settings))) as client:
        yield client


def checked_directory(settings: StorageSettings) -> Path | None:
    """The directory that a command is for, in which a node has kept data."""
    directory, built_in = settings.directory, settings.profile in BUILT_IN
    if directory is None and built_in:  # other providers may keep their data elsewhere
        raise SettingsError(
            "FAME_STORAGE_DB_DIRECTORY is not set.",
            remedy="--directory data, or FAME_STORAGE_DB_DIRECTORY=data",
        )
    if directory is not None:
        found = directory.iterdir() if is_directory(directory) else ()
        if not any(path.name.endswith(".db") or not built_in for path in found):
            raise SettingsError(
                f"No node has kept data in {directory}.",
                remedy="another directory in FAME_STORAGE_DB_DIRECTORY",
            )
    return directory


async def _open_socket(directory: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Connect to the node of a directory; None if no node listens.

    Raises:
        OwnerUnreachable: It is another user's, or does not answer.
    """
    path = directory / SOCKET
    try:
        with _short(path) as short:
            async with asyncio.timeout(SILENT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(short, limit=MAX_LINE_BYTES)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError:
        raise _stuck() from None
    except OSError as error:
        raise OwnerUnreachable(
            f"{path} cannot be used: {error.strerror}.", remedy="run it as the node's user"
        ) from None
    try:
        _check_owner(path, _peer(writer.get_extra_info("socket")))
    except BaseException:
        writer.close()
        raise
    return reader, writer


def _check_owner(path: Path, user: int) -> None:
    """Refuse a socket that a user whom an operator does not trust listens at, or put a link to."""
    trusted = {0, os.geteuid() or path.parent.stat().st_uid}
    if user not in trusted or path.is_symlink():
        whose = "a link" if path.is_symlink() else f"user {user}'s"
        raise OwnerUnreachable(
            f"{path} is {whose}, and not of this directory's node. Nothing was sent to it.",
            remedy=f"run it as the node's user, or remove {path}",
        )
