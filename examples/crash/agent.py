"""An agent that crashes over its first parcel, and packs it when it is back."""

import asyncio
import os
import sys

from strongroom import BaseAgent, BaseAgentState, operation


class Parcels(BaseAgentState):
    begun: int = 0


class Packer(BaseAgent[Parcels]):
    @operation
    async def pack(self, item: str) -> str:
        async with self.state as parcels:
            parcels.begun += 1
        if parcels.begun == 1:
            # The process is gone at once, as after a kill, and a supervisor would start another.
            os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606
        return f"{item} is packed, in attempt {parcels.begun}"


if __name__ == "__main__":
    sentinel = {
        "node": {
            "type": "Sentinel",
            "storage": {"profile": "sqlite"},
            "delivery": {"profile": "at-least-once"},
        }
    }
    asyncio.run(Packer().aserve("packer@fame.fabric", root_config=sentinel))
