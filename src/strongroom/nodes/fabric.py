"""The fabric as a user's code sees it: `async with Fabric():`, and calls work inside."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from typing import Self
from weakref import WeakSet

from strongroom.errors import FabricError, NoFabric
from strongroom.nodes.node import Node
from strongroom.root_config import RootConfig
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

        >>> async with Fabric.get_or_create() as fabric:
        ...     await fabric.serve(agent)
        """
        fabrics = _open_ones()
        return nullcontext(fabrics[-1]) if fabrics else cls(settings, root_config=root_config)

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


FameFabric = Fabric
"""Naylence's name for Fabric."""
