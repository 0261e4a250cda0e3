"""A log whose lines may contain what peers wrote."""

from __future__ import annotations

import logging

from strongroom.printable import printable

MAX_CHARACTERS = 300
"""Characters of a peer's text that a line shows."""
QUIET_SECONDS = 60.0
MAX_LINES = 20
"""Different warnings of one kind that are written within QUIET_SECONDS."""


def peers_log(name: str) -> logging.Logger:
    """The logger of a module that logs what peers wrote.

    Texts in its lines are escaped and cut. A warning is written once a minute, and then with the
    number of those that were left out.
    """
    log = logging.getLogger(name)
    log.addFilter(_PeersText())
    return log


class _PeersText(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[str, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_shown(each) for each in record.args)
        if record.levelno < logging.WARNING:
            return True
        kind = self._kinds.setdefault(str(record.msg), _Kind(record.created))
        return kind.may_write(record)


class _Kind:
    """The warnings with one text, apart from what is put into it."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._written: set[str] = set()
        self._left_out = 0

    def may_write(self, record: logging.LogRecord) -> bool:
        left_out = self._left_out
        if record.created - self._since >= QUIET_SECONDS:
            self._since, self._left_out = record.created, 0
            self._written.clear()
        line = record.getMessage()
        if line in self._written or len(self._written) >= MAX_LINES:
            self._left_out += 1
            return False
        if not self._written and left_out:
            record.msg, record.args = f"{line} (and {left_out} more like it)", ()
        self._written.add(line)
        return True


def _shown(value: object) -> object:
    if isinstance(value, int | float):
        return value
    text = printable(str(value))
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}\u2026"
