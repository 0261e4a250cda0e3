"""An agent whose tasks take a while, and report how far they are."""

import asyncio
from typing import Any

from strongroom import Artifact, BackgroundTaskAgent, DataPart, TaskSendParams

STEP_SECONDS = 0.05


class Baker(BackgroundTaskAgent):
    async def run_background_task(self, params: TaskSendParams) -> Any:
        for percent in range(20, 100, 20):
            await asyncio.sleep(STEP_SECONDS)
            data = DataPart(data={"percent": percent})
            await self.update_task_artifact(params.id, Artifact(parts=[data]))
        return {"loaves": 3}


if __name__ == "__main__":
    sentinel = {"node": {"type": "Sentinel"}}
    asyncio.run(Baker().aserve("baker@fame.fabric", root_config=sentinel))
