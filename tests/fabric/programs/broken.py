import asyncio
from typing import Any

from strongroom import BaseAgent


class Broken(BaseAgent[Any]):
    async def start(self) -> None:
        raise RuntimeError("no way to start")


if __name__ == "__main__":
    asyncio.run(Broken().aserve("test@fame.fabric"))
