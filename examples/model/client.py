"""Talks with the assistant."""

import asyncio

from strongroom import Agent, Fabric

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"


async def main() -> None:
    async with Fabric(root_config={"node": {"direct_parent_url": URL}}):
        assistant = Agent.remote_by_address("assistant@fame.fabric")
        for text in ("Hello.", "What did I say?"):
            print(await assistant.chat(text))


if __name__ == "__main__":
    asyncio.run(main())
