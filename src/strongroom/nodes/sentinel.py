"""The sentinel: a node to which others attach, and which routes their messages."""

from __future__ import annotations

from strongroom.errors import NotStarted
from strongroom.messaging.bindings import Bindings
from strongroom.messaging.sender import WayOut
from strongroom.nodes.children import Children
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.process import run_until_stopped
from strongroom.settings import Settings
from strongroom.storage.provider import StorageProvider


class Sentinel(Fabric):
    """A node to which others attach. It listens on FAME_LISTENER_HOST and FAME_LISTENER_PORT.

    >>> async with Sentinel(Settings(listener_port=0)) as sentinel:
    ...     print(f"listens on port {sentinel.port}")

    `asyncio.run(Sentinel().aserve())` runs one until SIGTERM or SIGINT.
    """

    def __init__(
        self, settings: Settings | None = None, *, storage: StorageProvider | None = None
    ) -> None:
        super().__init__(settings, storage=storage)
        self._children: Children | None = None

    @property
    def children(self) -> Children:
        """The nodes that are attached to this one.

        Raises:
            NotStarted: The sentinel has not started.
        """
        if self._children is None:
            raise NotStarted("The sentinel has not started.", remedy="async with Sentinel():")
        return self._children

    @property
    def port(self) -> int:
        """The port on which this sentinel listens."""
        return self.children.port

    async def aserve(self, *, log_level: str | int | None = None) -> None:
        """Run this sentinel until SIGTERM or SIGINT.

        A StrongroomError ends the process with one line and the error's exit status.
        """
        await run_until_stopped(self, log_level)

    async def _open_way_out(
        self, settings: Settings, bindings: Bindings, storage: StorageProvider
    ) -> WayOut:
        self._children = await Children.open(settings, bindings, self, storage)
        return self._children
