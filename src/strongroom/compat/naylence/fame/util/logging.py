"""`naylence.fame.util.logging`: a log whose lines have fields."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from strongroom.nodes.process import set_up_log

_STANDARD = {"exc_info", "extra", "stack_info", "stacklevel"}


def enable_logging(log_level: str | int | None = None) -> None:
    """Log to stderr at a level; `trace` means `debug`."""
    set_up_log("debug" if log_level == "trace" else log_level)


def getLogger(name: str) -> FieldLogger:  # noqa: N802 - Naylence's name
    """A logger whose level `enable_logging` and `aserve(log_level=...)` set.

    >>> getLogger("my_agent").info("task_started", task_id="task-1")
    """
    return FieldLogger(logging.getLogger(f"strongroom.{name}"), {})


class FieldLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take fields as keywords."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """(LoggerAdapter) Put the fields after the message."""
        fields = [f"{key}={kwargs.pop(key)!r}" for key in list(kwargs) if key not in _STANDARD]
        return " ".join([str(msg), *(field.replace("%", "%%") for field in fields)]), kwargs

    def trace(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log at the level of `debug`."""
        self.debug(msg, *args, **kwargs)
