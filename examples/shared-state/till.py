"""A till. Several run at once, each with its own address, and all keep their sales in one store."""

from __future__ import annotations

import sys
from contextlib import suppress

from pydantic import BaseModel

from strongroom import BaseAgent, KeyValueStore, operation
from strongroom.errors import KeyExists


class Sale(BaseModel):
    amount: int
    till: str


class Till(BaseAgent):
    sales: KeyValueStore[Sale]

    async def start(self) -> None:
        self.sales = await self.storage_provider.get_kv_store(Sale, "sales")

    @operation
    async def sell(self, number: str, amount: int) -> None:
        """Store a sale. Asked again with the same number, it stores nothing more."""
        with suppress(KeyExists):
            await self.sales.create(number, Sale(amount=amount, till=str(self.address)))


if __name__ == "__main__":
    Till().serve(sys.argv[1])
