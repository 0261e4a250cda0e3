"""An agent that stores values, encrypted on disk when FAME_STORAGE_PROFILE asks for it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from common import AGENT_ADDR
from pydantic import BaseModel, Field

from strongroom import BaseAgent, KeyValueStore, operation


class RecordModel(BaseModel):
    """What is stored under one key."""

    value: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


class StorageAgent(BaseAgent):
    """Stores values, and returns one of them or all in a stream."""

    _store: KeyValueStore[RecordModel]

    async def start(self) -> None:
        self._store = await self.storage_provider.get_kv_store(
            RecordModel, namespace="storage_agent_namespace"
        )

    @operation
    async def store_value(self, key: str, value: str) -> RecordModel:
        record = RecordModel(value=value)
        await self._store.set(key, record)
        return record

    @operation
    async def retrieve_value(self, key: str) -> RecordModel | None:
        return await self._store.get(key)

    @operation(streaming=True)
    async def retrieve_all_values(self) -> AsyncIterator[tuple[str, RecordModel]]:
        async for entry in self._store.scan():
            yield entry.key, entry.value


if __name__ == "__main__":
    asyncio.run(StorageAgent().aserve(AGENT_ADDR))
