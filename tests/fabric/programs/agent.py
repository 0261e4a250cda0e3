import asyncio
from collections.abc import AsyncIterator
from typing import Any

from strongroom import BaseAgent, BaseAgentState, operation


class Count(BaseAgentState):
    count: int = 0


class Agent(BaseAgent[Count]):
    @operation
    async def echo(self, value: Any) -> Any:
        return value

    @operation
    async def hang(self) -> None:
        await asyncio.sleep(3600)

    @operation
    async def increase(self) -> int:
        async with self.state as state:
            state.count += 1
            return state.count

    @operation(streaming=True)
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


if __name__ == "__main__":
    asyncio.run(Agent().aserve("test@fame.fabric"))
