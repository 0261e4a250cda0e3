"""Visits twice."""

import asyncio

from strongroom import Agent, Fabric

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"
CLIENT = {"node": {"direct_parent_url": URL, "storage": {"profile": "memory"}}}


async def main() -> None:
    async with Fabric(root_config=CLIENT):
        visitors = Agent.remote_by_address("visitors@fame.fabric")
        print(await visitors.greet("Ada"))
        print(await visitors.greet("Grace"))


if __name__ == "__main__":
    asyncio.run(main())
