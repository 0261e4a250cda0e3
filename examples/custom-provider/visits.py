"""A node that counts how often it was started. It knows nothing of how its data is kept."""

import asyncio

from pydantic import BaseModel

from strongroom import Fabric


class Visits(BaseModel):
    """What the node keeps."""

    number: int = 0


def one_more(visits: Visits) -> Visits:
    return Visits(number=visits.number + 1)


async def main() -> None:
    async with Fabric() as node:
        store = await node.storage.get_kv_store(Visits, "visits")
        visits = await store.modify("visits", one_more, default=Visits())
        print(f"Visit {visits.number} of node {node.id}, kept by {type(node.storage).__name__}:")
        print(*await node.storage.namespaces())


asyncio.run(main())
