"""Our agent for tasks of real peers."""

import asyncio
import sys
from typing import Any

from strongroom import Artifact, BackgroundTaskAgent, DataPart, TaskSendParams


class Steps(BackgroundTaskAgent):
    async def run_background_task(self, params: TaskSendParams) -> Any:
        part = params.message.parts[0]
        assert isinstance(part, DataPart)
        for step in range(part.data["steps"]):
            data = DataPart(data={"step": step})
            await self.update_task_artifact(params.id, Artifact(parts=[data]))
        if part.data.get("waits"):
            await asyncio.sleep(3600)
        if part.data.get("fails"):
            raise RuntimeError("not today")
        return part.data.get("result")


asyncio.run(Steps().aserve(sys.argv[1]))
