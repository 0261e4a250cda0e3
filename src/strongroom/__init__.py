"""Networked agents whose state is persistent and encrypted by default."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from strongroom.errors import StrongroomError
from strongroom.settings import Settings
from strongroom.version import __version__

if TYPE_CHECKING:
    from strongroom.agents.agent import Agent, BaseAgent
    from strongroom.agents.operations import operation
    from strongroom.agents.state import BaseAgentState
    from strongroom.nodes.fabric import Fabric, FameFabric
    from strongroom.nodes.node import Node
    from strongroom.nodes.sentinel import Sentinel
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.records import RecordStore
    from strongroom.storage.typed import Change, Entry, KeyValueStore

__all__ = [
    "Agent",
    "BaseAgent",
    "BaseAgentState",
    "Change",
    "Entry",
    "Fabric",
    "FameFabric",
    "KeyValueStore",
    "Node",
    "RecordStore",
    "Sentinel",
    "Settings",
    "StorageProvider",
    "StrongroomError",
    "__version__",
    "operation",
]

# A name is loaded when it is first used, so that a sentinel does not load what agents need.
_MODULES = {
    "Agent": "agents.agent",
    "BaseAgent": "agents.agent",
    "BaseAgentState": "agents.state",
    "Change": "storage.typed",
    "Entry": "storage.typed",
    "Fabric": "nodes.fabric",
    "FameFabric": "nodes.fabric",
    "KeyValueStore": "storage.typed",
    "Node": "nodes.node",
    "RecordStore": "storage.records",
    "Sentinel": "nodes.sentinel",
    "StorageProvider": "storage.provider",
    "operation": "agents.operations",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
