"""What commands have in common: the directory they mean, and how answers are shown."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from strongroom.admin import commands
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.settings import Settings, StorageSettings
from strongroom.storage.sqlite.files import file_name

Directory = Annotated[
    Path | None,
    typer.Option("--directory", "-d", help="The data directory [FAME_STORAGE_DB_DIRECTORY]."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
Namespace = Annotated[str, typer.Argument(help="A namespace, as `strongroom store ls` shows it.")]

WIDE = 1000  # a table is never cut: who pipes it wants all of it
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
KEYSTORES = {
    "encrypted-sqlite": file_name(KEYSTORE, encrypts=True),
    "sqlite": file_name(KEYSTORE, encrypts=False),
}


def storage_settings(directory: Path | None) -> StorageSettings:
    """The settings of the environment, for a directory; its files tell the profile."""
    settings = Settings.from_environment().storage
    found = directory or settings.directory
    profile = settings.profile
    if found is not None and profile == "memory":
        there = [name for name, file in KEYSTORES.items() if (found / file).exists()]
        profile = there[0] if there else "encrypted-sqlite"
    return dataclasses.replace(settings, directory=found, profile=profile)


async def show(
    items: AsyncIterator[Any], *, as_json: bool, columns: Sequence[str] = (), say: str = ""
) -> list[Any]:
    """Print items: as JSON, as a table with `columns`, or each by the sentence `say`.

    Returns them decoded, where they were not printed as they came.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    shown: list[Any] = []
    async for item in without_progress(items):
        if as_json:
            write(item)
            continue
        value = msgspec.json.decode(item)
        shown.append(value)
        if columns:
            table.add_row(*(_cell(value.get(column)) for column in columns))
        elif say:
            print(say.format(**value))
    if columns and shown and not as_json:
        Console(width=WIDE).print(table)
    return shown


async def without_progress(items: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The items, as bytes; the progress among them becomes a bar on a terminal."""
    with ExitStack() as open_bar:
        tell: Callable[[commands.Progress], None] | None = None
        async for item in items:
            if not isinstance(item, commands.Progress):
                open_bar.close()
                tell = None
                yield item
            elif sys.stderr.isatty():
                tell = tell or open_bar.enter_context(_Bar()).tell
                tell(item)


class _Bar(Progress):
    """A bar with an estimate of what is left, on stderr."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=Console(stderr=True), transient=True)
        self._task = self.add_task("", total=None)

    def tell(self, progress: commands.Progress) -> None:
        """Show how far it is."""
        self.update(
            self._task,
            description=progress.what,
            completed=progress.done,
            total=progress.total,
        )

    def __enter__(self) -> Self:
        self.start()
        return self


def new_file(path: Path) -> BinaryIO:
    """A new file for its owner alone; one that is there is not touched."""
    try:
        return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
    except OSError as error:
        message = f"{path} cannot be made: {error.strerror}. Try: another name"
        raise typer.BadParameter(message, param_hint="--out") from None


def write(line: bytes) -> None:
    """Print a line of JSON as it came."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value or "")
    return f"{text[:19]}Z".replace("T", " ") if TIME.match(text) else text
