"""An agent's own state: one record, loaded once, changed under a lock and stored at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, get_args

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

from strongroom.storage.provider import OWN_PREFIX, StorageProvider
from strongroom.storage.typed import KeyValueStore


class BaseAgentState(BaseModel):
    """The base of models of state. Give every field a default: together they are the first state.

    >>> class Counted(BaseAgentState):
    ...     count: int = 0

    A field that the model does not have is an error, in the code and in what is stored.
    """

    model_config = ConfigDict(extra="forbid")


S = TypeVar("S", bound=BaseAgentState, default=BaseAgentState)


class StateHolder(Generic[S]):
    """Loads and stores the state of one agent, under a key of a namespace.

    Args:
        model: The state's model.
        namespace: One of the node's own, or one of the user's.
        key: The key.
        first: Makes the first state.
        provider: The node's storage.
    """

    def __init__(
        self,
        model: type[S],
        namespace: str,
        key: str,
        first: Callable[[], S],
        provider: StorageProvider,
    ) -> None:
        self.key = key
        self.first = first
        self._model = model
        self._namespace = namespace
        self._provider = provider
        self._store: KeyValueStore[S] | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[S]:
        """The state, for one task at a time; stored at the end, unless an error ends the block.

        Raises:
            RevisionConflict: A replica of the agent has stored another state meanwhile.
        """
        async with self._lock:
            store = await self.store()
            entry = await store.entry(self.key)
            state = entry.value if entry else self.first()
            yield state
            # Replicas of the agent share the record.
            await store.set(self.key, state, if_revision=entry.revision if entry else 0)

    async def get(self) -> S:
        """A copy of the state."""
        store = await self.store()
        return await store.get(self.key) or self.first()

    async def clear(self) -> None:
        """Delete the record, so that the state is the model's defaults again."""
        async with self._lock:
            await (await self.store()).delete(self.key)

    async def store(self) -> KeyValueStore[S]:
        """The store in which the state is."""
        if self._store is None:
            is_own = self._namespace.startswith(OWN_PREFIX)
            open_store = self._provider.own_store if is_own else self._provider.get_kv_store
            self._store = await open_store(self._model, self._namespace)
        return self._store


def state_model(cls: type[Any]) -> type[BaseAgentState] | None:
    """The model `State` of a class that is declared as `BaseAgent[State]`, or `STATE_MODEL`."""
    for parent in cls.__mro__:
        declared = parent.__dict__.get("STATE_MODEL")
        if isinstance(declared, type) and issubclass(declared, BaseAgentState):
            return declared
        for base in parent.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, BaseAgentState):
                    return argument
    return None
