"""Three replicas of one agent, each on its own node, below a sentinel: here in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from strongroom import BaseAgent, Fabric, Sentinel, Settings, operation
from strongroom.settings import ATTACH_PATH

REPLICAS = 3


class Worker(BaseAgent):
    @operation
    async def where(self) -> str:
        return Fabric.current().id


@asynccontextmanager
async def replicas() -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        sentinel = await stack.enter_async_context(Sentinel())
        url = f"ws://127.0.0.1:{sentinel.port}{ATTACH_PATH}"
        for number in range(1, REPLICAS + 1):
            settings = Settings(admission_url=url, node_id=f"replica-{number}")
            node = await stack.enter_async_context(Fabric(settings))
            await node.serve(Worker(), "worker@*.fame.fabric")
        yield


async def main() -> None:
    async with replicas():
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
