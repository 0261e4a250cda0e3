"""Calls the agent: stores one more value, reads it back, and lists all values."""

import asyncio
import time

from common import AGENT_ADDR

from strongroom import Agent, FameFabric


async def main() -> None:
    async with FameFabric.create():
        storage = Agent.remote_by_address(AGENT_ADDR)
        key = f"key_{int(time.time() * 1000)}"

        print("Stored value:", await storage.store_value(key, "Hello, World!"))
        print("\nRetrieved value:", await storage.retrieve_value(key))

        print("\nAll stored key-values:")
        total = 0
        async for item in storage.retrieve_all_values():
            print(item)
            total += 1
        print("\nTotal stored values:", total)


if __name__ == "__main__":
    asyncio.run(main())
