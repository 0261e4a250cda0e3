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

    @operation
    async def increase_slowly(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return await self.increase()

    @operation(streaming=True)
    async def numbers(self, count: int) -> AsyncIterator[int]:
        self.ended = False
        try:
            for self.yielded in range(1, count + 1):
                yield self.yielded - 1
        finally:
            self.ended = True

    @operation
    async def progress(self) -> tuple[int, bool]:
        return self.yielded, self.ended


if __name__ == "__main__":
    asyncio.run(Agent().aserve("test@fame.fabric"))
