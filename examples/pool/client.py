"""Calls the pool, whose sentinel chooses a replica for each call."""

import asyncio

from strongroom import Agent, Fabric

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"


async def main() -> None:
    async with Fabric(root_config={"node": {"direct_parent_url": URL}}):
        pool = Agent.remote_by_address("worker@fame.fabric")
        found = await asyncio.gather(*(pool.where() for _ in range(60)))
        print(sorted(set(found)))
        one = Agent.remote_by_address("worker@replica-2.fame.fabric")
        print(await one.where())


if __name__ == "__main__":
    asyncio.run(main())
