"""Calls the agent, and is refused what does not fit."""

import asyncio

from strongroom import Agent, Fabric, InvalidArguments

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"


async def main() -> None:
    async with Fabric(root_config={"node": {"direct_parent_url": URL}}):
        calculator = Agent.remote_by_address("calculator@fame.fabric")
        print(await calculator.add(3, 4))
        print([number async for number in calculator.fibonacci(below=50)])
        try:
            await calculator.add("three", 4, _timeout=5)
        except InvalidArguments as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(main())
