"""Serves an agent within a test: one process, no sentinel, no environment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from strongroom.agents.agent import BaseAgent
from strongroom.nodes.fabric import Fabric
from strongroom.settings import Settings
from strongroom.storage.provider import StorageProvider

A = TypeVar("A", bound=BaseAgent[Any])

ADDRESS = "agent@fame.fabric"


@asynccontextmanager
async def serving(agent: A, storage: StorageProvider | None = None) -> AsyncIterator[A]:
    """Serve `agent` within the block, and give a remote of it, typed as its class.

    Calls take the way that they take between processes, JSON and all, without the network. No FAME_
    variable is read. Within the block the agent's fabric is the current one.

    >>> async with serving(StorageAgent()) as storage:
    ...     stored = await storage.store_value("key", "value")
    ...     assert await storage.retrieve_value("key") == stored

    Args:
        agent: The agent; its `start()` runs before the block, and its `stop()` after.
        storage: A provider that is open and stays open, so that a test can serve another agent on
            it to see what a restart finds. By default a memory provider, new for each block.
    """
    async with Fabric(Settings(), storage=storage) as fabric:
        await fabric.serve(agent, ADDRESS)
        yield type(agent).remote(ADDRESS, fabric=fabric)
