"""The events of one task: kept in `__task_events`, and seen by each reader from the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from pydantic import BaseModel

from strongroom.agents.a2a import TaskEvent, TaskStatus, TaskStatusUpdateEvent
from strongroom.storage.keys import Key
from strongroom.storage.typed import KeyValueStore


class StoredEvent(BaseModel):
    """The record of an event."""

    event: TaskEvent


class TaskEvents:
    """The events of one task, in their order.

    Args:
        store: Where they are kept, each with its number after `key`.
        key: The key of the task.
        max_events: How many are kept at least; with twice as many, the oldest are forgotten.
    """

    def __init__(self, store: KeyValueStore[StoredEvent], key: Key, max_events: int) -> None:
        self._store = store
        self._key = key
        self._max_events = max_events
        self._events: list[TaskEvent] = []
        self._forgotten = 0
        self._changed = asyncio.Event()

    async def load(self) -> TaskStatus | None:
        """Take up what the last run of the node stored; the status with which the task ended."""
        found = {
            _number(entry.key): entry.value.event async for entry in self._store.scan(self._key)
        }
        self._forgotten = min(found, default=0)
        self._events = [found[number] for number in sorted(found)]
        last = self._events[-1] if self._events else None
        return last.status if isinstance(last, TaskStatusUpdateEvent) and last.final else None

    async def add(self, event: TaskEvent) -> None:
        """Tell the readers at once, and store it."""
        number = self._forgotten + len(self._events)
        self._events.append(event)
        oldest = self._forgotten
        if len(self._events) >= 2 * self._max_events:
            self._forgotten += self._max_events
            del self._events[: self._max_events]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        await self._store.set(self._key_of(number), StoredEvent(event=event))
        await self._delete([self._key_of(each) for each in range(oldest, self._forgotten)])

    async def read(self) -> AsyncGenerator[TaskEvent, None]:
        """Every event from the first to the one that ends the task."""
        position = 0
        while True:
            position = max(position, self._forgotten)
            while position < self._forgotten + len(self._events):
                event = self._events[position - self._forgotten]
                yield event
                if isinstance(event, TaskStatusUpdateEvent) and event.final:
                    return
                position = max(position + 1, self._forgotten)
            await self._changed.wait()

    async def forget(self) -> None:
        """Delete them from the store."""
        await self._delete([key async for key in self._store.keys(self._key)])

    def _key_of(self, number: int) -> Key:
        return Key(*self._key.parts, number)

    async def _delete(self, keys: list[str]) -> None:
        await asyncio.gather(*map(self._store.delete, keys))  # at once: the store joins them


def _number(key: str) -> int:
    number = Key.of(key).parts[-1]
    assert isinstance(number, int)
    return number
