"""The sentinel: agents and clients attach to it, and it routes messages between them."""

import asyncio

from strongroom import Sentinel

if __name__ == "__main__":
    asyncio.run(Sentinel().aserve())
