"""Has a parcel packed by an agent that crashes meanwhile, and notices nothing."""

import asyncio

from strongroom import Agent, Fabric

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"


async def main() -> None:
    delivery = {"profile": "at-least-once"}
    async with Fabric(root_config={"node": {"direct_parent_url": URL, "delivery": delivery}}):
        packer = Agent.remote_by_address("packer@fame.fabric")
        print(await packer.pack("a lamp"))


if __name__ == "__main__":
    asyncio.run(main())
