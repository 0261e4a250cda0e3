"""One definition for each operator command: its name, its arguments, and what it does.

    @Command
    async def stats(node: Administered, *, namespace: str) -> AsyncGenerator[Any, None]:
        yield {"namespace": namespace, "records": ...}

A command yields values that can be encoded as JSON, and `Progress` in between. The socket of a
running node and a directory at rest run the same function.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_type_hints

import msgspec

from strongroom.disk.copying import PrivateCopy, is_read_only
from strongroom.errors import DirectoryInUse, OwnerUnreachable, StoreUnavailable, StrongroomError
from strongroom.settings import StorageSettings
from strongroom.storage.provider import BUILT_IN, StorageProvider, open_provider

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

P = ParamSpec("P")
T = TypeVar("T")

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class Progress(msgspec.Struct, frozen=True):
    """How far a command is: `done` of `total` records, pages or bytes of `what`."""

    what: str
    done: int
    total: int


class Described(Protocol):
    """A node, as far as commands see it."""

    def describe(self) -> dict[str, Any]:
        """The node's id, path and bindings."""

    async def redeliver(self) -> None:
        """Take up stored messages that are not under way."""


class Administered:
    """What commands work on: a running node, or a data directory that no node uses.

    Args:
        settings: Name the directory, the profile and the master key.
        provider: The running node's provider. None: `provider()` opens one.
        node: The running node, if there is one.
    """

    def __init__(
        self,
        settings: StorageSettings,
        provider: StorageProvider | None = None,
        node: Described | None = None,
    ) -> None:
        self.settings = settings
        self.node = node
        self._provider = provider
        self._copy: PrivateCopy | None = None

    async def provider(self, *, writing: bool = False) -> StorageProvider:
        """The storage provider. `writing` says whether the command changes anything.

        A directory that this user cannot write, such as one on a read-only disk, is copied first,
        since opening a store writes.

        Raises:
            OwnerUnreachable: Another process uses the directory, and has no admin socket.
            StorageError: The directory cannot be used.
        """
        settings, directory = self.settings, self.settings.directory
        if self._provider is None:
            try:
                if directory and settings.profile in BUILT_IN and is_read_only(directory):
                    self._copy = await asyncio.to_thread(PrivateCopy, directory)
                    settings = dataclasses.replace(settings, directory=self._copy.directory)
                self._provider = await open_provider(settings)
            except DirectoryInUse as error:
                raise OwnerUnreachable(
                    f"{self.settings.directory} is in use by a process that has no admin socket.",
                    remedy="stop that process",
                ) from error
        if writing and self._copy is not None:
            raise StoreUnavailable(
                f"{directory} may not be written.",
                remedy="mount it for writing, or run it as the directory's owner",
                path=directory,
            )
        return self._provider

    async def close(self) -> None:
        """Close the provider, if there is one."""
        if self._provider is not None:
            await self._provider.close()
        if self._copy is not None:
            await asyncio.to_thread(self._copy.remove)


class Command(Generic[P]):
    """An operator command, made from an async generator function.

    Its name is `module.function`. Its arguments are the function's parameters after the first, and
    their annotations say what JSON they accept.
    """

    def __init__(
        self, function: Callable[Concatenate[Administered, P], AsyncGenerator[Any, None]]
    ) -> None:
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._function: Callable[..., AsyncGenerator[Any, None]] = function
        types = get_type_hints(function)
        fields = [
            (p.name, types[p.name], *(() if p.default is p.empty else (p.default,)))
            for p in list(inspect.signature(function).parameters.values())[1:]
        ]
        self._arguments = msgspec.defstruct(
            function.__name__, fields, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
        )

    def pack(self, *args: P.args, **kwargs: P.kwargs) -> msgspec.Raw:
        """Arguments as a JSON object, for `run`."""
        return msgspec.Raw(msgspec.json.encode(self._arguments(*args, **kwargs)))

    def run(self, node: Administered, arguments: msgspec.Raw) -> AsyncGenerator[Any, None]:
        """Run the command on `node`, with arguments as a JSON object.

        Raises:
            StrongroomError: An argument is missing, unknown, or of the wrong type; names it.
        """
        try:
            given = msgspec.json.decode(arguments, type=self._arguments)
        except msgspec.DecodeError as error:
            raise StrongroomError(
                f"The arguments of {self.name} do not fit: {error}.",
                remedy=f"{self.name}({', '.join(self._arguments.__struct_fields__)})",
            ) from None
        return self._function(node, **msgspec.structs.asdict(given))


async def with_progress(
    work: Callable[[OnProgress], Coroutine[Any, Any, Iterable[T]]],
) -> AsyncGenerator[Progress | T, None]:
    """Yield the progress that `work` reports, and then each item of its result.

    When the generator is closed early, `work` is cancelled. A thread that it has started ends at
    its next report.
    """
    loop = asyncio.get_running_loop()
    reports: asyncio.Queue[Progress | None] = asyncio.Queue()

    def report(what: str, done: int, total: int) -> None:
        if task.done() or task.cancelling():  # and its thread is still reading
            raise RuntimeError("The operator has left.")
        loop.call_soon_threadsafe(reports.put_nowait, Progress(what, done, total))

    task = asyncio.create_task(work(report))
    task.add_done_callback(lambda _: reports.put_nowait(None))
    try:
        while (progress := await reports.get()) is not None:
            yield progress
        for item in await task:
            yield item
    finally:
        task.cancel()
        await asyncio.wait([task])


def utc(microseconds: int) -> datetime:
    """A time in microseconds since 1970 as a datetime."""
    return EPOCH + timedelta(microseconds=microseconds)
