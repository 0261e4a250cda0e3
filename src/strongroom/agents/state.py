"""An agent's own state: one record, loaded once, changed under a lock and stored at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, get_args

from pydantic import BaseModel
from typing_extensions import TypeVar

from strongroom.storage.provider import StorageProvider
from strongroom.storage.typed import KeyValueStore

KEY = "state"


class BaseAgentState(BaseModel):
    """The base of models of state. Give every field a default: together they are the first state.

    >>> class Counted(BaseAgentState):
    ...     count: int = 0
    """


S = TypeVar("S", bound=BaseAgentState, default=BaseAgentState)


class StateHolder(Generic[S]):
    """Loads and stores the state of one agent, under the key `state` of a namespace."""

    def __init__(self, model: type[S], namespace: str, provider: StorageProvider) -> None:
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
            store = await self._open()
            entry = await store.entry(KEY)
            state = entry.value if entry else self._model()
            yield state
            # Replicas of the agent share the record.
            await store.set(KEY, state, if_revision=entry.revision if entry else 0)

    async def get(self) -> S:
        """A copy of the state."""
        store = await self._open()
        return await store.get(KEY) or self._model()

    async def clear(self) -> None:
        """Delete the record, so that the state is the model's defaults again."""
        async with self._lock:
            await (await self._open()).delete(KEY)

    async def _open(self) -> KeyValueStore[S]:
        if self._store is None:
            self._store = await self._provider.own_store(self._model, self._namespace)
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
