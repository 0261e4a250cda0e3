"""Does what its arguments say, a JSON list `[address, operation, args, kwargs, is_stream]` each."""

import asyncio
import json
import sys

from naylence.agent import Agent
from naylence.agent.configs import CLIENT_CONFIG
from naylence.fame.core import FameFabric


async def one(address, operation, args, kwargs, is_stream):
    remote = Agent.remote_by_address(address)
    try:
        if is_stream:
            stream = await getattr(remote, operation)(*args, _stream=True, **kwargs)
            return {"items": [item async for item in stream]}
        return {"result": await getattr(remote, operation)(*args, **kwargs)}
    except Exception as error:
        return {"error": str(error)}


async def main():
    async with FameFabric.create(root_config=CLIENT_CONFIG):
        for line in sys.argv[1:]:
            print(json.dumps(await one(*json.loads(line)), default=str), flush=True)


asyncio.run(main())
