"""What a request stores and sends together with its answer, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from strongroom.messaging.envelope import Envelope

if TYPE_CHECKING:
    from strongroom.storage.records import Batch


class Unit(Protocol):
    """The work of a request that waits to be stored when the request has its answer."""

    messages: list[Envelope]
    """What is sent once all is stored."""

    async def store(self, more: Sequence[Batch] = ()) -> None:
        """Store it, with `more` that belongs to it.

        Raises:
            StorageError: Nothing was stored.
        """

    def end(self) -> None:
        """It is stored, or given up. Ending twice does nothing."""
