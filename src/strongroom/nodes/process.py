"""Runs a node as a process: signals, readiness, logging, and errors as exit statuses."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, TypeVar

from strongroom.errors import StrongroomError
from strongroom.printable import printable
from strongroom.settings import Settings

T = TypeVar("T")

log = logging.getLogger("strongroom.nodes")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a node's main coroutine in a new event loop, uvloop's if it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def run_until_stopped(
    node: AbstractAsyncContextManager[Any], log_level: str | int | None = None
) -> None:
    """Run `node` until SIGTERM or SIGINT, and notify the service manager when it is ready.

    A StrongroomError ends the process with one line and the error's exit status.

    Args:
        node: Entered to start the node, left to stop it.
        log_level: The level of the logger `strongroom`; see `set_up_log`.
    """
    task = asyncio.current_task()
    assert task is not None
    with _errors_as_exit_status(), _cancelled_by_signals(task):
        set_up_log(log_level)
        async with node:
            notify("READY=1")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                notify("STOPPING=1")


def set_up_log(log_level: str | int | None = None) -> None:
    """Log to stderr at the level of FAME_LOG_LEVEL, unless the program has set up logging itself.

    A program has done so if the root logger or the logger `strongroom` has a handler or a level.

    Args:
        log_level: A level that the program asks for. It is set in any case.
    """
    root, ours = logging.getLogger(), logging.getLogger("strongroom")
    has_handlers = bool(root.handlers or ours.handlers)
    has_levels = root.level != logging.WARNING or ours.level != logging.NOTSET
    if not (has_handlers or has_levels):
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler])
    elif log_level is None:
        return
    level = log_level if log_level is not None else Settings.from_environment().log_level
    with suppress(ValueError):
        ours.setLevel(level.upper() if isinstance(level, str) else level)


class _OneLine(logging.Formatter):
    """Escapes what peers may have put into a message. A traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


def notify(state: str) -> None:
    """Send `state` to the service manager, if there is one, by systemd's protocol."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError as error:
            log.warning("NOTIFY_SOCKET does not answer: %s", error)


@contextmanager
def _errors_as_exit_status() -> Iterator[None]:
    try:
        yield
    except StrongroomError as error:
        print(f"strongroom: error: {printable(str(error).rstrip())}", file=sys.stderr)  # noqa: T201 - the last word
        raise SystemExit(error.exit_code) from None


@contextmanager
def _cancelled_by_signals(task: asyncio.Task[Any]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            task.cancel()

    # Signals cannot be handled in another thread or on Windows; there, the caller cancels the task.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    try:
        yield
    except asyncio.CancelledError:
        if not stopped or task.uncancel() > 0:
            raise
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
