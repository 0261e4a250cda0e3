"""Tables, and the bar that shows progress, as `rich` draws them."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from strongroom.admin.command import Progress
from strongroom.printable import printable

WIDE = 1000  # columns: a table is never cut, since it may be piped
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


class ProgressBar(rich.progress.Progress):
    """A bar on stderr with the time that is left. Shows nothing where stderr is not a terminal."""

    def __init__(self) -> None:
        super().__init__(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self.add_task("", total=None)

    def show(self, progress: Progress) -> None:
        """Show how much is done."""
        self.start()
        self.update(
            self._task,
            description=printable(progress.what),
            completed=progress.done,
            total=progress.total,
        )

    def stop(self) -> None:
        """Remove the bar, if it was shown: older versions of rich print an empty line otherwise."""
        if self.live.is_started:
            super().stop()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys, as a table with the keys at its head."""
    drawn = Table(*(Column(name, no_wrap=True) for name in rows[0]), box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*map(_cell, row.values()))
    text = io.StringIO()
    Console(width=WIDE, file=text).print(drawn)
    return text.getvalue().removesuffix("\n")


def _cell(value: Any) -> Text:
    if isinstance(value, int):
        return Text(f"{value:,}")
    text = printable(str(value or ""))
    return Text(f"{text[:19]}Z".replace("T", " ") if TIME.match(text) else text)
