"""The sentinel: a node to which others attach, and which routes their messages."""

from __future__ import annotations

from typing import ClassVar, cast

from strongroom.nodes.children import Children
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.process import run_until_stopped
from strongroom.root_config import RootConfig


class Sentinel(Fabric):
    """A node to which others attach. It listens on FAME_LISTENER_HOST and FAME_LISTENER_PORT.

    >>> async with Sentinel(Settings(listener_port=0)) as sentinel:
    ...     print(f"listens on port {sentinel.port}")

    `asyncio.run(Sentinel.aserve())` runs one until SIGTERM or SIGINT.
    """

    always_listens: ClassVar[bool] = True

    @property
    def children(self) -> Children:
        """The nodes that are attached to this one.

        Raises:
            NotStarted: The sentinel has not started.
        """
        return cast("Children", self._running.sender.way_out)

    @property
    def port(self) -> int:
        """The port on which this sentinel listens."""
        return self.children.port

    async def aserve(
        *itself: Sentinel,  # none if it is called on the class
        root_config: RootConfig = None,
        log_level: str | int | None = None,
    ) -> None:
        """Run this sentinel until SIGTERM or SIGINT; called on the class, a new one.

        A StrongroomError ends the process with one line and the error's exit status.

        Args:
            root_config: The new sentinel's settings in Naylence's form.
            log_level: The level of the logger `strongroom`.
        """
        sentinel = itself[0] if itself else Sentinel(root_config=root_config)
        await run_until_stopped(sentinel, log_level)
