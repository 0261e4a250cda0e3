"""Asks the agent."""

import asyncio

from strongroom import Agent, Fabric

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"


async def main() -> None:
    async with Fabric(root_config={"node": {"direct_parent_url": URL}}):
        print(await Agent.remote_by_address("hello@fame.fabric").run_task("World"))


if __name__ == "__main__":
    asyncio.run(main())
