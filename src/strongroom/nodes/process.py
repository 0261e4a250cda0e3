"""A node as a process: signals, readiness, and errors as one line with an exit status."""

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
from strongroom.settings import Settings

T = TypeVar("T")

log = logging.getLogger("strongroom.nodes")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a node's main coroutine in an event loop of its own: uvloop's where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def run_until_stopped(
    running: AbstractAsyncContextManager[Any], log_level: str | int | None = None
) -> None:
    """Enter `running`, say that it is ready, and leave it at SIGTERM or SIGINT.

    A StrongroomError ends the process with one line and the error's exit status.
    """
    task = asyncio.current_task()
    assert task is not None
    with _errors_as_exit_status(), _cancelled_by_signals(task):
        set_up_log(log_level)
        async with running:
            notify("READY=1")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                notify("STOPPING=1")


def set_up_log(log_level: str | int | None = None) -> None:
    """Log to stderr, as FAME_LOG_LEVEL or `log_level` says, unless the program has its own way."""
    level = log_level if log_level is not None else Settings.from_environment().log_level
    if isinstance(level, str):
        level = level.upper()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with suppress(ValueError):
        logging.getLogger("strongroom").setLevel(level)


def notify(state: str) -> None:
    """Tell the service manager, if there is one, in systemd's way."""
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
        print(f"strongroom: error: {error}", file=sys.stderr)  # noqa: T201 - the last word
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

    # Signals cannot be handled everywhere (another thread, Windows); then the caller cancels us.
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
