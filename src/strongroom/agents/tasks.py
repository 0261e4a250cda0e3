"""Tasks of agents: what a class can override, and how calls named `tasks/...` reach it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

from strongroom.errors import PushNotificationNotSupported, TaskNotCancelable, UnsupportedOperation
from strongroom.messaging.operations import outcome

if TYPE_CHECKING:
    from msgspec import Raw

    from strongroom.agents.a2a import (
        Task,
        TaskEvent,
        TaskIdParams,
        TaskPushNotificationConfig,
        TaskQueryParams,
        TaskSendParams,
    )

POLL_SECONDS = 0.5
"""Seconds between two looks at the status of a task whose agent reports no events."""


class TaskMethods:
    """What an agent does with tasks, unless its class says otherwise.

    Any of these methods may also be a plain function. What they raise arrives at the caller; the
    errors below `AgentError` arrive as what they are.
    """

    async def run_task(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Do a whole task while its caller waits; override it as `run_task(self, payload, id)`.

        >>> class Echo(BaseAgent):
        ...     async def run_task(self, payload: Any, id: str | None) -> Any:
        ...         return payload

        What it returns is the task's result. A remote's `run_task(payload=None, id=None)` starts a
        task, waits for its end, however long that takes, and returns its result.
        """
        raise UnsupportedOperation(
            f"{type(self).__name__} has neither run_task() nor start_task().",
            remedy="one of them in the agent's class",
        )

    async def start_task(self, *args: Any, **kwargs: Any) -> Task:
        """Start a task; override it as `start_task(self, params: TaskSendParams) -> Task`.

        A remote's takes the same, or the keywords of `make_task_params`.
        """
        from strongroom.agents.a2a import TaskState, make_task, payload_of  # noqa: PLC0415

        (params,) = (*args, *kwargs.values())
        result = await outcome(self.run_task(payload_of(params.message), params.id))
        return make_task(
            id=params.id,
            session_id=params.sessionId,
            state=TaskState.COMPLETED,
            payload=result,
        )

    async def get_task_status(self, params: TaskQueryParams) -> Task:  # noqa: ARG002
        """The task as it is now."""
        raise UnsupportedOperation(f"{type(self).__name__} keeps no tasks.")

    async def cancel_task(self, params: TaskIdParams) -> Task:  # noqa: ARG002
        """Cancel a task, and return it."""
        raise TaskNotCancelable(f"{type(self).__name__} cannot cancel tasks.")

    async def subscribe_to_task_updates(self, params: TaskSendParams) -> AsyncIterator[TaskEvent]:
        """The events of a task until it ends; here, a look at its status every half second."""
        return self.__polled(params)

    async def __polled(self, params: TaskSendParams) -> AsyncGenerator[TaskEvent, None]:
        from strongroom.agents.a2a import (  # noqa: PLC0415
            FINAL_STATES,
            TaskQueryParams,
            TaskStatusUpdateEvent,
        )

        last = None
        while True:
            task = await outcome(self.get_task_status(TaskQueryParams(id=params.id)))
            is_final = task.status.state in FINAL_STATES
            if last is None or (task.status.state, task.status.message) != last:
                yield TaskStatusUpdateEvent(id=params.id, status=task.status, final=is_final)
            if is_final:
                return
            last = (task.status.state, task.status.message)
            await asyncio.sleep(POLL_SECONDS)

    async def unsubscribe_task(self, params: TaskIdParams) -> Any:
        """A reader of a task's events has left."""

    async def register_push_endpoint(
        self,
        config: TaskPushNotificationConfig,  # noqa: ARG002
    ) -> TaskPushNotificationConfig:
        """Send notifications of a task to where `config` says."""
        raise PushNotificationNotSupported(f"{type(self).__name__} sends no notifications.")

    async def get_push_notification_config(
        self,
        params: TaskIdParams,  # noqa: ARG002
    ) -> TaskPushNotificationConfig:
        """Where notifications of a task go."""
        raise PushNotificationNotSupported(f"{type(self).__name__} sends no notifications.")


NAMES = frozenset(name for name in vars(TaskMethods) if not name.startswith("_"))
"""The methods, which a remote has too."""

PREFIX = "tasks/"


def start_request(
    agent: TaskMethods, method: str, params: Raw
) -> Awaitable[bytes] | AsyncGenerator[bytes, None] | None:
    """Begin the method of `agent` that peers call `method`; None if there is none.

    Raises:
        InvalidArguments: `params` do not fit.
    """
    from strongroom.agents.task_calls import REQUESTS, read_params  # noqa: PLC0415

    request = REQUESTS.get(method)
    if request is None:
        return None
    returned = getattr(agent, request.attribute)(read_params(request, params))
    return _events(returned) if request.is_stream else _answer(request.attribute, returned)


async def _answer(attribute: str, returned: Any) -> bytes:
    from pydantic import BaseModel  # noqa: PLC0415

    value = await outcome(returned)
    if value is None:
        return b"null"
    if not isinstance(value, BaseModel):
        raise TypeError(f"{attribute}() returned a {type(value).__name__}, which is not a Task")
    return value.model_dump_json(by_alias=True).encode()


async def _events(returned: Any) -> AsyncGenerator[bytes, None]:
    events = returned if isinstance(returned, AsyncIterable) else await returned
    try:
        async for event in events:
            yield event.model_dump_json(by_alias=True).encode()
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
