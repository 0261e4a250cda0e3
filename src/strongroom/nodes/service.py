"""Services that are no agents: a function, or an object of any class with operations."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from strongroom.errors import StrongroomError
from strongroom.messaging.operations import (
    find_operation,
    function_as_operation,
    operations_of,
    outcome,
)
from strongroom.messaging.values import check_depth

if TYPE_CHECKING:
    from strongroom.nodes.node import Node

log = logging.getLogger(__name__)


class Service:
    """A service as its node sees it (a `Resident`).

    What it has of `name`, `capabilities`, `start`, `stop` and `on_message` is used as that of an
    agent is.

    Raises:
        StrongroomError: It has nothing that others could call.
    """

    def __init__(self, service: Any) -> None:
        kind = service if hasattr(service, "__name__") else type(service)
        self._service = self._called = service
        if inspect.isroutine(service):
            self._called, self._operations = function_as_operation(service)
        else:
            self._operations = operations_of(type(service))
        self.name: str = getattr(service, "name", None) or snake_case(kind.__name__)
        has_any = bool(self._operations) or hasattr(service, "on_message")
        if isinstance(service, type) or not has_any:
            raise StrongroomError(
                f"{kind.__name__} is not a service.",
                remedy="a function, or an object with @operation on its methods",
            )

    @property
    def capabilities(self) -> Sequence[str]:
        return getattr(self._service, "capabilities", ())

    async def begin(self, _node: Node, _address: str) -> None:
        """Start it."""
        await self._run("start")

    async def end(self) -> None:
        """Stop it."""
        await self._run("stop")

    def invoke(self, method: str, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin an operation."""
        return find_operation(self._operations, method, self.name).start(self._called, params)

    async def receive(self, payload: Raw) -> None:
        """Take a plain message."""
        check_depth(payload)
        if not await self._run("on_message", msgspec.json.decode(payload)):
            log.warning("%s got a message and has no on_message()", self.name)

    async def _run(self, hook: str, *arguments: Any) -> bool:
        method: Callable[..., Any] | None = getattr(self._service, hook, None)
        if method is None:
            return False
        await outcome(method(*arguments))
        return True


@lru_cache
def snake_case(name: str) -> str:
    """A class's name in lower case with underscores, as in `http_get_agent2`."""
    apart = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", apart).lower()
