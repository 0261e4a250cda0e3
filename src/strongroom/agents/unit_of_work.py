"""Records, state, messages and the answer of one operation, stored together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, cast

from strongroom.agents.state import S, StateHolder
from strongroom.errors import NotStarted, StrongroomError
from strongroom.messaging.places import own_place
from strongroom.storage.encoding import V
from strongroom.storage.records import Feature
from strongroom.storage.transaction import Transaction

if TYPE_CHECKING:
    from strongroom.messaging.envelope import Envelope
    from strongroom.nodes.node import Node
    from strongroom.storage.records import Batch
    from strongroom.storage.typed import KeyValueStore


class UnitOfWork(Generic[S]):
    """What `BaseAgent.unit_of_work()` returns. An agent has one at a time, the others wait.

    Until the operation has returned, only this sees what it writes.
    """

    def __init__(self, node: Node, turn: asyncio.Lock, holder: StateHolder[S] | None) -> None:
        self.messages: list[Envelope] = []
        self._node = node
        self._turn = turn
        self._holder = holder
        self._has_turn = False
        self._parts: dict[str, Transaction[Any]] = {}
        self._state: S | None = None
        self._first_state: S | None = None

    @property
    def state(self) -> S:
        """The agent's state, to be changed.

        Raises:
            NotStarted: The block has not begun, or the agent has no state.
        """
        if self._state is None:
            raise NotStarted(
                "This unit of work has no state.",
                remedy="async with self.unit_of_work() as work, of an agent with a state",
            )
        return self._state

    def records(self, store: KeyValueStore[V]) -> Transaction[V]:
        """Read and write a store of the agent's node as a part of this unit.

        >>> class Shop(BaseAgent):
        ...     @operation
        ...     async def pay(self, number: str) -> None:
        ...         async with self.unit_of_work() as work:
        ...             orders = work.records(self._orders)
        ...             await orders.set(number, Order(paid=True))

        Raises:
            NotSupported: The storage keeps one namespace at a time.
            NotStarted: The block has not begun, or has ended.
        """
        if not self._has_turn:
            raise NotStarted(
                "The unit of work is not under way.",
                remedy="async with self.unit_of_work() as work:",
            )
        store.check_feature(Feature.TOGETHER, "unit_of_work()")
        part = self._parts.get(store.namespace)
        if part is None:
            part = self._parts[store.namespace] = store.transaction().begin()
        return cast("Transaction[V]", part)

    async def send_message(self, address: str, message: Any) -> None:
        """Send a plain message once all is stored.

        Raises:
            InvalidAddress: `address` is not an address.
            InvalidArguments: The message would not arrive as it is.
        """
        self.messages.append(self._node.new_message(address, message))

    async def __aenter__(self) -> Self:
        place = own_place.get()
        if not place.takes_unit:
            raise StrongroomError(
                "A unit of work is stored with the answer of the operation in which it is.",
                remedy="use it in an operation that returns one result, or in on_message()",
            )
        if place.unit is not None:
            raise StrongroomError(
                "This operation has a unit of work already, which is stored when it returns.",
                remedy="one unit for all that it stores",
            )
        await self._turn.acquire()
        self._has_turn = True
        try:
            if self._holder is not None:
                state = await self.records(await self._holder.store()).get(self._holder.key)
                self._state = state or self._holder.first()
                self._first_state = self._state.model_copy(deep=True) if state else None
        except BaseException:
            self.end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        place = own_place.get()
        if kind is not None or not place.takes_unit:
            self.end()
            return
        try:
            if self._holder is not None and self._state != self._first_state:
                records = self.records(await self._holder.store())
                await records.set(self._holder.key, self.state)
        except BaseException:
            self.end()
            raise
        place.unit = self

    async def store(self, more: Sequence[Batch] = ()) -> None:
        """(Unit) Store all, with `more` that belongs to it."""
        batches = [batch for part in self._parts.values() if (batch := part.end()) is not None]
        await self._node.storage.apply_together([*batches, *more])

    def end(self) -> None:
        """(Unit) Let the next one begin."""
        if self._has_turn:
            self._has_turn = False
            self._turn.release()
        for part in self._parts.values():
            part.end()
