"""The fabric as a user's code sees it: `async with Fabric():`, and calls work inside."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Self

from strongroom.errors import NoFabric
from strongroom.nodes.node import Node
from strongroom.settings import Settings

_current: ContextVar[Fabric] = ContextVar("strongroom_fabric")


class Fabric(Node):
    """A node of a user's own: current in its block, and in all that runs on it.

    >>> async with Fabric():
    ...     await Agent.remote_by_address("storage@fame.fabric").retrieve_value("key")
    """

    _token: Token[Fabric] | None = None

    @classmethod
    def current(cls) -> Fabric:
        """The fabric of this context.

        Raises:
            NoFabric: There is none.
        """
        try:
            return _current.get()
        except LookupError:
            raise NoFabric(
                "No fabric is current here.", remedy="async with Fabric(): around it"
            ) from None

    @classmethod
    def create(cls, settings: Settings | None = None) -> Self:
        """A fabric to enter (Naylence's name for `Fabric()`)."""
        return cls(settings)

    async def __aenter__(self) -> Self:
        self._token = _current.set(self)  # before anything starts, so that all of it inherits this
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
        if self._token is not None:
            _current.reset(self._token)
            self._token = None


FameFabric = Fabric
"""Naylence's name for Fabric."""
