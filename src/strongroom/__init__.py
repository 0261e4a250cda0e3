"""Networked agents whose state is persistent and encrypted by default."""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from strongroom.errors import (
    AgentError,
    CallError,
    CallInterrupted,
    CallTimeout,
    Conflict,
    DuplicateTask,
    FabricError,
    InvalidArguments,
    InvalidData,
    InvalidTask,
    KeyExists,
    KeyMissing,
    NoDataFound,
    NoRoute,
    NotStarted,
    OperationFailed,
    PushNotificationNotSupported,
    RateLimitExceeded,
    RecordInvalid,
    RevisionConflict,
    StorageError,
    StreamStalled,
    StrongroomError,
    TaskFailed,
    TaskNotCancelable,
    TaskNotFound,
    Unauthorized,
    UnknownOperation,
    UnsupportedOperation,
)
from strongroom.settings import Settings, StorageSettings
from strongroom.version import __version__

__all__ = [
    "Agent",
    "AgentError",
    "Artifact",
    "AuthenticationInfo",
    "BackgroundTaskAgent",
    "BaseAgent",
    "BaseAgentState",
    "CallError",
    "CallInterrupted",
    "CallTimeout",
    "Change",
    "Conflict",
    "DataPart",
    "DuplicateTask",
    "Entry",
    "Fabric",
    "FabricError",
    "FameAddress",
    "FameFabric",
    "FileContent",
    "FilePart",
    "InvalidArguments",
    "InvalidData",
    "InvalidTask",
    "KeyExists",
    "KeyMissing",
    "KeyValueStore",
    "MemoryProvider",
    "Message",
    "NoDataFound",
    "NoRoute",
    "Node",
    "NotStarted",
    "OperationFailed",
    "PushNotificationConfig",
    "PushNotificationNotSupported",
    "RateLimitExceeded",
    "RecordInvalid",
    "RecordStore",
    "RevisionConflict",
    "Sentinel",
    "Settings",
    "StorageError",
    "StorageProvider",
    "StorageSettings",
    "StreamStalled",
    "StrongroomError",
    "Task",
    "TaskArtifactUpdateEvent",
    "TaskFailed",
    "TaskIdParams",
    "TaskNotCancelable",
    "TaskNotFound",
    "TaskPushNotificationConfig",
    "TaskQueryParams",
    "TaskSendParams",
    "TaskState",
    "TaskStatus",
    "TaskStatusUpdateEvent",
    "TextPart",
    "Unauthorized",
    "UnknownOperation",
    "UnsupportedOperation",
    "__version__",
    "first_data_part",
    "first_text_part",
    "make_message",
    "make_task",
    "make_task_params",
    "open_provider",
    "operation",
]


def _make_public(value: Any) -> None:
    """Let `value` say that it is from here, where users import it from."""
    if isinstance(value, type):
        with suppress(NameError):  # annotations are looked up in the module that a class names
            value.__annotations__ = inspect.get_annotations(value, eval_str=True)
    value.__module__ = __name__


for _value in [value for name, value in globals().items() if name in __all__]:
    if isinstance(_value, type):
        _make_public(_value)

if TYPE_CHECKING:
    from strongroom.agents.a2a import (
        Artifact,
        AuthenticationInfo,
        DataPart,
        FileContent,
        FilePart,
        Message,
        PushNotificationConfig,
        Task,
        TaskArtifactUpdateEvent,
        TaskIdParams,
        TaskPushNotificationConfig,
        TaskQueryParams,
        TaskSendParams,
        TaskState,
        TaskStatus,
        TaskStatusUpdateEvent,
        TextPart,
        first_data_part,
        first_text_part,
        make_message,
        make_task,
        make_task_params,
    )
    from strongroom.agents.agent import Agent, BaseAgent
    from strongroom.agents.background import BackgroundTaskAgent
    from strongroom.agents.state import BaseAgentState
    from strongroom.messaging.address import FameAddress
    from strongroom.messaging.operations import operation
    from strongroom.nodes.fabric import Fabric, FameFabric
    from strongroom.nodes.node import Node
    from strongroom.nodes.sentinel import Sentinel
    from strongroom.storage.memory import MemoryProvider
    from strongroom.storage.provider import StorageProvider, open_provider
    from strongroom.storage.records import RecordStore
    from strongroom.storage.typed import Change, Entry, KeyValueStore
else:
    # A name is loaded when it is first used, so that a sentinel does not load what agents need.
    # Not seen by type checkers, for which a module with __getattr__ has every name.
    _NAMES = {
        "agents.a2a": (
            "Artifact",
            "AuthenticationInfo",
            "DataPart",
            "FileContent",
            "FilePart",
            "Message",
            "PushNotificationConfig",
            "Task",
            "TaskArtifactUpdateEvent",
            "TaskIdParams",
            "TaskPushNotificationConfig",
            "TaskQueryParams",
            "TaskSendParams",
            "TaskState",
            "TaskStatus",
            "TaskStatusUpdateEvent",
            "TextPart",
            "first_data_part",
            "first_text_part",
            "make_message",
            "make_task",
            "make_task_params",
        ),
        "agents.agent": ("Agent", "BaseAgent"),
        "agents.background": ("BackgroundTaskAgent",),
        "messaging.operations": ("operation",),
        "agents.state": ("BaseAgentState",),
        "messaging.address": ("FameAddress",),
        "nodes.fabric": ("Fabric", "FameFabric"),
        "nodes.node": ("Node",),
        "nodes.sentinel": ("Sentinel",),
        "storage.memory": ("MemoryProvider",),
        "storage.provider": ("StorageProvider", "open_provider"),
        "storage.records": ("RecordStore",),
        "storage.typed": ("Change", "Entry", "KeyValueStore"),
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        _make_public(value)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
