"""What commands share: the directory that they work on, and how they show results and errors."""

from __future__ import annotations

import dataclasses
import errno
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, BinaryIO, ParamSpec, TextIO

import msgspec
import typer

from strongroom.admin.command import Command, Progress
from strongroom.admin.socket import connect
from strongroom.disk.directory import sync_directory
from strongroom.errors import StrongroomError
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.printable import printable
from strongroom.settings import Settings, StorageSettings
from strongroom.storage.sqlite.files import file_name

Directory = Annotated[
    Path | None,
    typer.Option(
        "--directory",
        "-d",
        readable=False,  # not checked here: is_directory says more
        help="The data directory [default: FAME_STORAGE_DB_DIRECTORY].",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, one object on each line; errors, too.")
]
Namespace = Annotated[str, typer.Argument(help="A namespace, as `strongroom store ls` shows it.")]

KEYSTORES = {
    "encrypted-sqlite": file_name(KEYSTORE, encrypts=True),
    "sqlite": file_name(KEYSTORE, encrypts=False),
}

P = ParamSpec("P")


CLICK_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # Typer does not export it


class UsageError(typer.BadParameter):
    """An argument or option cannot be used."""

    def __init__(self, what: str, *, remedy: str, hint: str | None = None) -> None:
        self.error = StrongroomError(what, remedy=remedy)
        super().__init__(str(self.error), param_hint=hint)


def terminal() -> ModuleType:
    """The module that draws, loaded when something is drawn: help needs nothing of it."""
    return import_module("strongroom.cli.terminal")


def storage_settings(directory: Path | None) -> StorageSettings:
    """The environment's settings for a directory. The names of its files show its profile."""
    settings = Settings.from_environment().storage
    found = directory or settings.directory
    profile = settings.profile
    if found is not None and profile == "memory":
        there = [name for name, file in KEYSTORES.items() if os.path.lexists(found / file)]
        profile = there[0] if there else "encrypted-sqlite"
    return dataclasses.replace(settings, directory=found, profile=profile)


async def request(
    directory: Path | None, command: Command[P], /, *args: P.args, **kwargs: P.kwargs
) -> AsyncGenerator[Any, None]:
    """Run one operator command: its items as JSON, and `Progress` in between."""
    async with (
        connect(storage_settings(directory)) as client,
        aclosing(client.request(command, *args, **kwargs)) as items,
    ):
        async for item in items:
            yield item


async def show(
    items: AsyncGenerator[Any, None],
    *,
    as_json: bool,
    text: Callable[[Any], str] | None = None,
    kind: Any = Any,
    file: BinaryIO | None = None,
) -> int:
    """Print the items of a `request` as JSON, as a text for each, or as a table.

    Args:
        items: What `request` yields.
        as_json: Print each item as it is.
        text: The text of an item, for people. None: print a table.
        kind: The type that `text` takes. In any other than `Any`, `text` escapes what it prints.
        file: Write here instead of to standard output.

    Returns:
        The number of items.
    """
    count, rows = 0, []
    printed = file is None and sys.stdout is not None and sys.stdout.isatty()
    async with aclosing(without_progress(items, printed=printed)) as shown:
        async for item in shown:
            count += 1
            if as_json:
                write(item, file)
            elif text is not None:
                write(text(_escaped(msgspec.json.decode(item, type=kind))).encode(), file)
            else:
                rows.append(msgspec.json.decode(item))
    if rows:
        write(terminal().table(rows).encode())
    return count


def say(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print what was found as JSON, or as a text that names its fields in braces."""
    line = msgspec.json.encode(found) if as_json else text.format_map(_escaped(found)).encode()
    write(line)


def _escaped(value: Any) -> Any:
    """What JSON says, with its texts made printable."""
    if isinstance(value, dict):
        return {_escaped(name): _escaped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


async def without_progress(
    items: AsyncGenerator[Any, None], *, printed: bool = True
) -> AsyncGenerator[bytes, None]:
    """The items, as bytes. On a terminal, the progress reports in between become a bar.

    Args:
        items: What `request` yields.
        printed: The items go to the terminal, too, so the bar ends at the first of them.
    """
    bar = terminal().ProgressBar()
    try:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Progress):
                    bar.show(item)
                    continue
                if printed:
                    bar.stop()
                    bar.disable = True
                yield item
    finally:
        bar.stop()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that only its owner can read. It gets its name when the block has ended without error.

    Until then it has another name in the same directory. A file that exists is not overwritten.
    """
    unfinished = path.parent / f".{secrets.token_hex(8)}.new"
    with _naming(path):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        with _naming(path):
            _link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_directory(path.parent)


def _link(unfinished: Path, path: Path) -> None:
    try:
        path.hardlink_to(unfinished)  # a rename would replace a file that was made meanwhile
    except FileExistsError:
        raise
    except OSError:  # this filesystem has no hard links
        unfinished.rename(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be made: {error.strerror}.", remedy="another name", hint="--out"
        ) from None


def read_input(path: Path) -> bytes:
    """What a file holds, or standard input if the path is `-`."""
    if str(path) != "-":
        return path.read_bytes()
    return standard_input().buffer.read()


def standard_input() -> TextIO:
    """Standard input.

    Raises:
        UsageError: It is closed.
    """
    if sys.stdin is None:
        raise UsageError("Standard input is closed.", remedy="open it: < FILE")
    return sys.stdin


def write(line: bytes, file: BinaryIO | None = None) -> None:
    """Write a line to a file, or print it at once."""
    if file is None and sys.stdout is None:
        raise StrongroomError("Standard output is closed.", remedy="open it: > FILE")
    (file or sys.stdout.buffer).write(line + b"\n")
    if file is None:
        sys.stdout.buffer.flush()
