import asyncio

from strongroom import Sentinel

if __name__ == "__main__":
    asyncio.run(Sentinel().aserve())
