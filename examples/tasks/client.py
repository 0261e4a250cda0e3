"""Waits for one task, and watches and cancels another."""

import asyncio
from typing import Any

from strongroom import (
    Agent,
    DataPart,
    Fabric,
    TaskIdParams,
    TaskStatusUpdateEvent,
    make_task_params,
)

URL = "${env:FAME_DIRECT_ADMISSION_URL:ws://127.0.0.1:8000/fame/v1/attach/ws/downstream}"
ENOUGH_PERCENT = 40


async def watch_and_cancel(baker: Any) -> None:
    params = make_task_params(id="second", payload="bread")
    await baker.start_task(params)
    async for event in baker.subscribe_to_task_updates(params):
        if isinstance(event, TaskStatusUpdateEvent):
            print(f"{event.status.state.value}{', the end' if event.final else ''}")
            continue
        part = event.artifact.parts[0]
        assert isinstance(part, DataPart)
        print(f"{part.data['percent']} %")
        if part.data["percent"] >= ENOUGH_PERCENT:
            await baker.cancel_task(TaskIdParams(id="second"))


async def main() -> None:
    async with Fabric(root_config={"node": {"direct_parent_url": URL}}):
        baker = Agent.remote_by_address("baker@fame.fabric")
        print(await baker.run_task("bread", "first"))
        await watch_and_cancel(baker)


if __name__ == "__main__":
    asyncio.run(main())
