"""An agent that remembers, in a file if its storage profile keeps one."""

import asyncio

from strongroom import BaseAgent, BaseAgentState, operation


class Visits(BaseAgentState):
    count: int = 0
    last: str | None = None


class Visitors(BaseAgent[Visits]):
    @operation
    async def greet(self, name: str) -> str:
        async with self.state as visits:
            visits.count += 1
            before, visits.last = visits.last, name
        return f"Hello, {name}! You are number {visits.count}, after {before or 'nobody'}."


if __name__ == "__main__":
    sentinel = {
        "node": {"type": "Sentinel", "storage": {"profile": "${env:FAME_STORAGE_PROFILE:sqlite}"}}
    }
    asyncio.run(Visitors().aserve("visitors@fame.fabric", root_config=sentinel))
