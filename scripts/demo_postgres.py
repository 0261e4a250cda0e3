"""Two tills sell from one PostgreSQL space, and one is killed; `make demo-postgres` calls this."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from strongroom import Agent, Fabric, Sentinel, Settings, StorageSettings
from strongroom.errors import CallError
from strongroom.settings import ATTACH_PATH
from strongroom.storage import open_provider

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples" / "shared-state")]
from till import Sale  # noqa: E402

from support.postgres import server  # noqa: E402
from support.processes import Program  # noqa: E402

TILLS = ("first@fame.fabric", "second@fame.fabric")
SALES = 600
KILLED_AT = 200
CASHIERS = 16


class Shop:
    """Cashiers who ask the tills in turn, and ask another one when a till does not answer."""

    def __init__(self, doomed: Program) -> None:
        self._doomed = doomed
        self._tills = [Agent.remote_by_address(address) for address in TILLS]
        self._numbers = iter(range(SALES))
        self._sold = 0
        self.asked_again = 0

    async def cashier(self) -> None:
        for number in self._numbers:
            await self._sell(number)
            self._sold += 1
            if self._sold == KILLED_AT:
                assert self._doomed.process is not None
                self._doomed.process.kill()
                print(f"kill -9 of {TILLS[1]}, after {self._sold} sales", flush=True)

    async def _sell(self, number: int) -> None:
        for till in (self._tills[number % 2], *self._tills * 10):
            with suppress(CallError):
                await till.sell(f"{number:06}", number)
                return
            self.asked_again += 1
        raise SystemExit("No till answers.")


async def main() -> None:
    storage = StorageSettings(profile="postgres", url=server().url, space="shop")
    print("A PostgreSQL server, a sentinel and two tills ...", flush=True)
    async with tills(storage) as (doomed, url), Fabric(Settings(admission_url=url)):
        shop = Shop(doomed)
        await asyncio.gather(*(shop.cashier() for _ in range(CASHIERS)))
    provider = await open_provider(storage)
    sales = await (await provider.get_kv_store(Sale, "sales")).list()
    await provider.close()
    for address in TILLS:
        print(f"{address} stored {sum(sale.till == address for sale in sales.values())} sales")
    print(f"{shop.asked_again} sales were asked of the other till again")
    lost = SALES - len(sales)
    print(f"{len(sales)} of {SALES} sales are stored, each once; {lost} are lost")
    raise SystemExit(lost != 0)


@asynccontextmanager
async def tills(storage: StorageSettings) -> AsyncIterator[tuple[Program, str]]:
    """A sentinel and two tills in processes. Gives the till that is to be killed, and the URL."""
    with tempfile.TemporaryDirectory() as home:
        programs = []
        async with Sentinel(Settings(listener_port=0)) as hub:
            url = f"ws://127.0.0.1:{hub.port}{ATTACH_PATH}"
            variables: dict[str, Any] = {
                "FAME_STORAGE_PROFILE": storage.profile,
                "FAME_STORAGE_URL": storage.url,
                "FAME_STORAGE_SPACE": storage.space,
                "FAME_DIRECT_ADMISSION_URL": url,
            }
            for address in TILLS:
                os.makedirs(place := Path(home, address))  # noqa: PTH103
                program = Program(str(ROOT / "examples/shared-state/till.py"), place, address)
                await program.start_and_wait(**variables)
                programs.append(program)
            yield programs[1], url
            await programs[0].stop()


if __name__ == "__main__":
    asyncio.run(main())
