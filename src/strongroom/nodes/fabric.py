"""The fabric as a user's code sees it: `async with Fabric():`, and calls work inside."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakSet

import msgspec

from strongroom.errors import FabricError, InvalidArguments, NoFabric
from strongroom.messaging.calls import TIMEOUT_SECONDS
from strongroom.messaging.rpc import Target
from strongroom.nodes.node import Node
from strongroom.root_config import RootConfig, node_settings
from strongroom.settings import Settings

_entered: ContextVar[tuple[Fabric, ...]] = ContextVar("strongroom_fabrics", default=())
"""The fabrics that this context has entered; the last one that is open is current."""
_open: WeakSet[Fabric] = WeakSet()


class Fabric(Node):
    """A node of a user's own: current in its block, and in all that runs on it.

    >>> async with Fabric():
    ...     await Agent.remote_by_address("storage@fame.fabric").retrieve_value("key")
    """

    @classmethod
    def current(cls) -> Fabric:
        """The fabric of this context.

        Raises:
            NoFabric: There is none.
        """
        fabrics = _open_ones()
        if not fabrics:
            raise NoFabric("No fabric is current here.", remedy="async with Fabric(): around it")
        return fabrics[-1]

    @classmethod
    def create(cls, settings: Settings | None = None, *, root_config: RootConfig = None) -> Self:
        """A fabric to enter (Naylence's name for `Fabric()`)."""
        return cls(settings, root_config=root_config)

    @classmethod
    def get_or_create(
        cls, settings: Settings | None = None, *, root_config: RootConfig = None
    ) -> AbstractAsyncContextManager[Fabric]:
        """The current fabric, which stays open after the block, or else a new one.

        The current one keeps its settings; a `root_config` that asks for what we do not have is an
        error in any case.

        >>> async with Fabric.get_or_create() as fabric:
        ...     await fabric.serve(agent)
        """
        fabrics = _open_ones()
        if not fabrics:
            return cls(settings, root_config=root_config)
        node_settings(root_config)
        return nullcontext(fabrics[-1])

    async def invoke(
        self,
        address: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        timeout_ms: float = TIMEOUT_SECONDS * 1000,
    ) -> Any:
        """Call an operation by its name; a remote does the same, and checks more.

        >>> await node.invoke("storage@fame.fabric", "add", {"a": 1, "b": 2})
        3

        Args:
            address: The agent.
            method: The operation.
            params: Its arguments by name.
            timeout_ms: Milliseconds to wait for the result.

        Raises:
            CallError: There is no result.
        """
        return await self._invoke(Target(str(address)), method, params, timeout_ms)

    async def invoke_by_capability(
        self,
        capabilities: Sequence[str],
        method: str,
        params: Mapping[str, Any] | None = None,
        timeout_ms: float = TIMEOUT_SECONDS * 1000,
    ) -> Any:
        """Call an operation of any agent that has all of `capabilities`; see `invoke`."""
        return await self._invoke(Target(None, tuple(capabilities)), method, params, timeout_ms)

    async def invoke_stream(
        self,
        address: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        timeout_ms: float = TIMEOUT_SECONDS * 1000,
    ) -> AsyncGenerator[Any, None]:
        """The items of a streaming operation; see `invoke`.

        >>> items = await node.invoke_stream("storage@fame.fabric", "add", {"a": 1, "b": 2})
        >>> [item async for item in items]
        [3]
        """
        return self._items(Target(str(address)), method, params, timeout_ms)

    async def invoke_by_capability_stream(
        self,
        capabilities: Sequence[str],
        method: str,
        params: Mapping[str, Any] | None = None,
        timeout_ms: float = TIMEOUT_SECONDS * 1000,
    ) -> AsyncGenerator[Any, None]:
        """The items of a streaming operation of any agent that has all of `capabilities`."""
        return self._items(Target(None, tuple(capabilities)), method, params, timeout_ms)

    async def _invoke(
        self, target: Target, method: str, params: Mapping[str, Any] | None, timeout_ms: float
    ) -> Any:
        result = await self.calls.call(target, method, _json(method, params), timeout_ms / 1000)
        return None if result is None else msgspec.json.decode(result)

    async def _items(
        self, target: Target, method: str, params: Mapping[str, Any] | None, timeout_ms: float
    ) -> AsyncGenerator[Any, None]:
        items = self.calls.stream(target, method, _json(method, params), timeout_ms / 1000)
        async with aclosing(items):
            async for item in items:
                yield msgspec.json.decode(item)

    async def __aenter__(self) -> Self:
        if self in _open:
            raise FabricError(
                "This Fabric has been entered already.", remedy="a new Fabric() for each block"
            )
        _open.add(self)
        _entered.set((*_open_ones(), self))  # before it starts, so that all of it inherits this
        try:
            await self.start()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.stop()
        finally:
            self._leave()

    def _leave(self) -> None:
        _open.discard(self)
        _entered.set(_open_ones())


def _open_ones() -> tuple[Fabric, ...]:
    return tuple(fabric for fabric in _entered.get() if fabric in _open)


def _json(method: str, params: Mapping[str, Any] | None) -> bytes:
    try:
        return json.dumps(params or {}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidArguments(f"{method}(): {error}.", remedy="values that JSON has") from None


FameFabric = Fabric
"""Naylence's name for Fabric."""
