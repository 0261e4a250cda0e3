import asyncio
import sys

from naylence.agent import Artifact, BackgroundTaskAgent, DataPart, configs


class Steps(BackgroundTaskAgent):
    async def run_background_task(self, params):
        asked = params.message.parts[0].data
        for step in range(asked["steps"]):
            await asyncio.sleep(0.05)
            await self.update_task_artifact(
                params.id, Artifact(parts=[DataPart(data={"step": step})])
            )
        while asked.get("waits") and (await self.get_task_state(params.id)).value == "working":
            await asyncio.sleep(0.05)
        if asked.get("fails"):
            raise RuntimeError("not today")
        return asked.get("result")


asyncio.run(Steps().aserve(sys.argv[1], root_config=configs.NODE_CONFIG, log_level="info"))
