import asyncio
import sys

from naylence.agent import BaseAgent
from naylence.agent.configs import NODE_CONFIG
from naylence.fame.service import operation


class Agent(BaseAgent):
    @operation
    async def echo(self, value=None):
        return value

    @operation
    async def add(self, a, b=0):
        return a + b

    @operation
    async def fail(self, text):
        raise ValueError(text)

    @operation
    async def hang(self):
        await asyncio.sleep(3600)

    @operation
    async def hold(self, seconds):
        await asyncio.sleep(seconds)
        return seconds

    @operation(name="count", streaming=True)
    async def count(self, number):
        try:
            for each in range(number):
                self.yielded = each + 1
                yield each
        finally:
            self.ended = True

    @operation
    async def progress(self):
        return [getattr(self, "yielded", 0), getattr(self, "ended", False)]


asyncio.run(Agent().aserve(sys.argv[1], root_config=NODE_CONFIG, log_level="info"))
