import asyncio

from naylence.agent.configs import SENTINEL_CONFIG
from naylence.fame.sentinel import Sentinel

asyncio.run(Sentinel.aserve(root_config=SENTINEL_CONFIG, log_level="info"))
