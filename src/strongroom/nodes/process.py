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
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from strongroom.errors import StrongroomError
from strongroom.printable import printable
from strongroom.settings import Settings

if TYPE_CHECKING:
    from strongroom.nodes.node import Node

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
    node: AbstractAsyncContextManager[Node], log_level: str | int | None = None
) -> None:
    """Run `node` until SIGTERM or SIGINT, and notify the service manager when it is ready.

    A StrongroomError ends the process with one line and the error's exit status. A second signal
    ends the process at once. To handle signals yourself, enter the node instead of calling this.

    Args:
        node: Entered to start the node, left to stop it.
        log_level: The level of the logger `strongroom`; see `set_up_log`.
    """
    task = asyncio.current_task()
    assert task is not None
    with _errors_as_exit_status(), _StopSignals(task):
        set_up_log(log_level)
        async with node as running:
            notify("READY=1")
            try:
                await running.storage.until_lost()
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


class _StopSignals:
    """Cancels a task at the first SIGTERM or SIGINT, and lets the second end the process at once.

    The handlers that the program had run too, and are put back at the end of the block. So several
    agents in one process all stop at a signal.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._previous: dict[int, Any] = {}
        self._received = 0
        self._is_over = False

    def __enter__(self) -> None:
        # Python handles signals in its main thread only; in another, the caller cancels the task.
        with suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._is_over = True
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._on_signal:  # else others still need the chain
                signal.signal(number, previous)
        is_ours = kind is asyncio.CancelledError and self._received > 0
        return is_ours and self._task.uncancel() == 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_over:
            self._received += 1
            if self._received > 1:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self._loop.call_soon_threadsafe(self._task.cancel)
        previous = self._previous[number]
        if callable(previous) and not _is_pythons_own(previous):
            previous(number, frame)


def _is_pythons_own(handler: Any) -> bool:
    """Whether a handler is one that raises KeyboardInterrupt: Python's, or that of asyncio.run."""
    owner = getattr(getattr(handler, "func", None), "__self__", None)
    return handler is signal.default_int_handler or isinstance(owner, asyncio.Runner)
