"""An agent on a sentinel: one process that listens, and answers."""

import asyncio
from typing import Any

from strongroom import BaseAgent


class Hello(BaseAgent):
    async def run_task(self, payload: Any, id: str | None) -> str:
        return f"Hello, {payload}!"


if __name__ == "__main__":
    asyncio.run(Hello().aserve("hello@fame.fabric", root_config={"node": {"type": "Sentinel"}}))
