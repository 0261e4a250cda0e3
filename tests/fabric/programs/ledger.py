"""An agent that writes down each call. SIGUSR1 fills its disk, SIGUSR2 gives it room again."""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator

from pydantic import BaseModel

from strongroom import BaseAgent, KeyValueStore, operation


class Line(BaseModel):
    times: int = 0


class Ledger(BaseAgent):
    _lines: KeyValueStore[Line]

    async def start(self) -> None:
        self._lines = await self.storage_provider.get_kv_store(Line, namespace="ledger")
        loop = asyncio.get_running_loop()
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        loop.add_signal_handler(signal.SIGUSR1, _limit_files, 1, most)
        loop.add_signal_handler(signal.SIGUSR2, _limit_files, most, most)

    @operation
    async def write_down(self, name: str) -> str:
        await self._lines.modify(name, _once_more, default=Line())
        return name

    @operation
    async def times(self, name: str) -> int:
        line = await self._lines.get(name)
        return line.times if line else 0

    @operation
    async def echo(self, value: str) -> str:
        return value

    @operation(streaming=True)
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


def _limit_files(size: int, most: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def _once_more(line: Line) -> Line:
    return Line(times=line.times + 1)


if __name__ == "__main__":
    asyncio.run(Ledger().aserve("ledger@fame.fabric"))
