"""An agent with an operation and a stream."""

import asyncio
from collections.abc import AsyncIterator

from strongroom import BaseAgent, operation


class Calculator(BaseAgent):
    @operation
    async def add(self, a: int, b: int) -> int:
        return a + b

    @operation(streaming=True)
    async def fibonacci(self, below: int) -> AsyncIterator[int]:
        a, b = 0, 1
        while a < below:
            yield a
            a, b = b, a + b


if __name__ == "__main__":
    sentinel = {"node": {"type": "Sentinel"}}
    asyncio.run(Calculator().aserve("calculator@fame.fabric", root_config=sentinel))
