"""Agents whose tasks run in the background, with progress, cancellation and a memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from strongroom.agents.a2a import (
    Artifact,
    Message,
    Task,
    TaskEvent,
    TaskIdParams,
    TaskQueryParams,
    TaskSendParams,
    TaskState,
)
from strongroom.agents.agent import BaseAgent
from strongroom.agents.state import S
from strongroom.agents.task_log import TaskLimits, TaskLog
from strongroom.errors import NotStarted
from strongroom.nodes.node import Node


class BackgroundTaskAgent(BaseAgent[S]):
    """An agent that answers at once when a task is started, and does it in the background.

    >>> class Research(BackgroundTaskAgent):
    ...     async def run_background_task(self, params: TaskSendParams) -> Any:
    ...         await self.update_task_artifact(params.id, Artifact(parts=[TextPart(text="Half")]))
    ...         return {"pages": 3}

    What `run_background_task` returns is the task's result; if it raises, the task has failed.
    Tasks are in the node's storage: after a restart, those that ran have failed.

    Args:
        name: The agent's name, if not made from its class's.
        max_queue_size: Events of a task that a late reader can still get.
        max_task_lifetime_ms: Milliseconds after which a task is canceled. None: no limit.
        completed_cache_size: Finished tasks that are kept.
        completed_cache_ttl_sec: Seconds for which they are kept.
    """

    __limits: TaskLimits = TaskLimits()
    __log: TaskLog | None = None

    def __init__(
        self,
        name: str | None = None,
        *,
        max_queue_size: int = TaskLimits.max_events,
        max_task_lifetime_ms: float | None = None,
        completed_cache_size: int = TaskLimits.max_finished,
        completed_cache_ttl_sec: float = TaskLimits.keep_seconds,
        **state: Any,
    ) -> None:
        super().__init__(name, **state)
        self.__limits = TaskLimits(
            max_events=max_queue_size,
            lifetime_seconds=max_task_lifetime_ms and max_task_lifetime_ms / 1000,
            max_finished=completed_cache_size,
            keep_seconds=completed_cache_ttl_sec,
        )

    async def __prepare__(self, node: Node, address: str, ending: AsyncExitStack) -> None:
        self.__log = await TaskLog.open(self, node.storage, address, self.__limits)
        ending.push_async_callback(self.__log.close)

    def __opened(self) -> TaskLog:
        if self.__log is None:
            raise NotStarted(f"{self.name} is not served.", remedy="serve it first")
        return self.__log

    async def run_background_task(self, params: TaskSendParams) -> Any:
        """Do a task. Override this; a `CancelledError` in it means that it was canceled."""
        raise NotImplementedError(f"{type(self).__name__} has no run_background_task()")

    async def update_task_artifact(self, task_id: str, artifact: Artifact) -> bool:
        """Report what a task has made so far; False if the task has ended."""
        return await self.__opened().add_artifact(task_id, artifact)

    async def update_task_state(
        self, task_id: str, state: TaskState, message: Message | None = None
    ) -> bool:
        """Report another state of a task; False if it has ended."""
        return await self.__opened().update(task_id, state, message)

    async def get_task_state(self, task_id: str) -> TaskState:
        """The state of a task."""
        return self.__opened().get(task_id).status.state

    async def start_task(self, *args: Any, **kwargs: Any) -> Task:
        (params,) = (*args, *kwargs.values())
        return await self.__opened().start(params)

    async def get_task_status(self, params: TaskQueryParams) -> Task:
        return self.__opened().get(params.id)

    async def cancel_task(self, params: TaskIdParams) -> Task:
        return await self.__opened().cancel(params.id)

    async def subscribe_to_task_updates(self, params: TaskSendParams) -> AsyncIterator[TaskEvent]:
        return self.__opened().read(params.id)
