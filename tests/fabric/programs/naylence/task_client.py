"""Starts, watches and cancels tasks at the address of its argument; prints a JSON line for each."""

import asyncio
import json
import sys

from naylence.agent import Agent, TaskIdParams, TaskStatusUpdateEvent, make_task_params
from naylence.agent.configs import CLIENT_CONFIG
from naylence.fame.core import FameFabric


def said(event):
    if isinstance(event, TaskStatusUpdateEvent):
        return event.status.state.value
    return event.artifact.parts[0].data["step"]


async def outcome(call):
    try:
        return await call
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def main():
    async with FameFabric.create(root_config=CLIENT_CONFIG):
        remote = Agent.remote_by_address(sys.argv[1])
        print(json.dumps(await outcome(remote.run_task({"steps": 2, "result": {"a": 1}}))))
        print(json.dumps(await outcome(remote.run_task({"steps": 0, "fails": True}))))
        params = make_task_params(id="watched", payload={"steps": 3, "waits": True})
        await remote.start_task(params)
        seen = []
        async for event in await remote.subscribe_to_task_updates(params):
            seen.append(said(event))
            if seen[-1] == 2:
                await remote.cancel_task(TaskIdParams(id="watched"))
        print(json.dumps(seen))
        print(json.dumps(await outcome(remote.cancel_task(TaskIdParams(id="unknown")))))


asyncio.run(main())
