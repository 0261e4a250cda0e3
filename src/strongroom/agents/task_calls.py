"""The calls named `tasks/...`, and the caller's side of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from typing import Any, NamedTuple, Self, TypeVar

from msgspec import Raw
from pydantic import BaseModel

from strongroom.agents.a2a import (
    FINAL_STATES,
    Task,
    TaskEvent,
    TaskIdParams,
    TaskPushNotificationConfig,
    TaskQueryParams,
    TaskSendParams,
    TaskState,
    TaskStatusUpdateEvent,
    make_task_params,
    payload_of,
)
from strongroom.errors import CallError, InvalidArguments, ProtocolError, TaskFailed
from strongroom.messaging.address import new_id
from strongroom.messaging.rpc import Target
from strongroom.messaging.values import Codec, Unfit, listed
from strongroom.nodes.fabric import Fabric

NO_LIMIT_SECONDS = 10 * 365 * 86400.0

M = TypeVar("M", bound=BaseModel)


class Request(NamedTuple):
    """The method of an agent that a call runs, and the model of its parameters."""

    attribute: str
    params: type[BaseModel]
    is_stream: bool = False


REQUESTS = {
    "tasks/send": Request("start_task", TaskSendParams),
    "tasks/get": Request("get_task_status", TaskQueryParams),
    "tasks/cancel": Request("cancel_task", TaskIdParams),
    "tasks/sendSubscribe": Request("subscribe_to_task_updates", TaskSendParams, is_stream=True),
    "tasks/resubscribe": Request("subscribe_to_task_updates", TaskQueryParams, is_stream=True),
    "tasks/sendUnsubscribe": Request("unsubscribe_task", TaskIdParams),
    "tasks/pushNotification/set": Request("register_push_endpoint", TaskPushNotificationConfig),
    "tasks/pushNotification/get": Request("get_push_notification_config", TaskIdParams),
}

_EVENT = Codec(TaskEvent)


def read_params(request: Request, params: Raw) -> BaseModel:
    """The parameters of a call from the wire.

    Raises:
        InvalidArguments: They do not fit.
    """
    try:
        read: BaseModel = Codec(request.params).read(params)
    except Unfit as error:
        text = f"{request.attribute}(): {listed(error.problems)}."
        raise InvalidArguments(text, data=error.problems) from None
    return read


class TaskCalls:
    """The task methods of a remote agent.

    Args:
        fabric: The fabric to call from.
        target: The agent.
        timeout: Seconds to wait for an answer. The end of a task is waited for without a limit.
    """

    def __init__(self, fabric: Fabric, target: Target, timeout: float) -> None:
        self._fabric = fabric
        self._target = target
        self._timeout = timeout

    async def run_task(
        self, payload: Any = None, id: str | None = None, *, _timeout: float = NO_LIMIT_SECONDS
    ) -> Any:
        """Start a task, wait for its end, and return its result.

        Raises:
            TaskFailed: The task failed; the error has its text.
            CallError: The task could not be started, or its agent is gone.
        """
        params = make_task_params(id=id or new_id(), payload=payload)
        status = (await self._call("tasks/send", params, Task, _timeout)).status
        if status.state not in FINAL_STATES:
            async for event in self.subscribe_to_task_updates(params):
                if isinstance(event, TaskStatusUpdateEvent):
                    status = event.status
                    if status.state in FINAL_STATES:
                        break
        result = payload_of(status.message)
        if status.state is TaskState.FAILED:
            raise TaskFailed(str(result or "The task failed and does not say why."))
        return result

    async def start_task(self, params: TaskSendParams | None = None, **fields: Any) -> Task:
        """Start a task, given by its parameters or by the keywords of `make_task_params`."""
        given = make_task_params(**fields) if params is None else params
        return await self._call("tasks/send", given, Task)

    async def get_task_status(self, params: TaskQueryParams) -> Task:
        """The task as it is now."""
        return await self._call("tasks/get", params, Task)

    async def cancel_task(self, params: TaskIdParams) -> Task:
        """Cancel a task."""
        return await self._call("tasks/cancel", params, Task)

    def subscribe_to_task_updates(
        self,
        params: TaskSendParams,
        *,
        timeout_ms: float | None = None,
        max_items: int | None = None,
    ) -> TaskUpdates:
        """The events of a task until it ends.

        Args:
            params: Names the task.
            timeout_ms: Milliseconds without an event after which the events end.
            max_items: Events after which they end.
        """
        timeout = NO_LIMIT_SECONDS if timeout_ms is None else timeout_ms / 1000
        return TaskUpdates(self._updates(params, timeout, max_items))

    async def unsubscribe_task(self, params: TaskIdParams) -> None:
        """Tell the agent that a reader of the task's events has left."""
        await self._request("tasks/sendUnsubscribe", params)

    async def register_push_endpoint(
        self, config: TaskPushNotificationConfig
    ) -> TaskPushNotificationConfig:
        """Let the agent send notifications of a task to an address."""
        return await self._call("tasks/pushNotification/set", config, TaskPushNotificationConfig)

    async def get_push_notification_config(
        self, params: TaskIdParams
    ) -> TaskPushNotificationConfig:
        """Where notifications of a task go."""
        return await self._call("tasks/pushNotification/get", params, TaskPushNotificationConfig)

    async def _updates(
        self, params: TaskSendParams, timeout: float, max_items: int | None
    ) -> AsyncGenerator[TaskEvent, None]:
        data = params.model_dump_json(by_alias=True).encode()
        items = self._fabric.calls.stream(self._target, "tasks/sendSubscribe", data, timeout)
        count, is_over = 0, False
        try:
            while max_items is None or count < max_items:
                item = await anext(items, None)
                if item is None:
                    is_over = True
                    return
                yield self._read(_EVENT, item, "tasks/sendSubscribe")
                count += 1
        except TimeoutError:
            if timeout == NO_LIMIT_SECONDS:
                raise
        except CallError:
            is_over = True
            raise
        finally:
            await items.aclose()
            if not is_over:
                with suppress(CallError):
                    await self.unsubscribe_task(TaskIdParams(id=params.id))

    async def _call(
        self, method: str, params: BaseModel, result: type[M], timeout: float | None = None
    ) -> M:
        answer = await self._request(method, params, timeout)
        read: M = self._read(Codec(result), answer or Raw(b"null"), method)
        return read

    async def _request(
        self, method: str, params: BaseModel, timeout: float | None = None
    ) -> Raw | None:
        data = params.model_dump_json(by_alias=True).encode()
        return await self._fabric.calls.call(self._target, method, data, timeout or self._timeout)

    def _read(self, codec: Codec, value: Raw, method: str) -> Any:
        try:
            return codec.read(value)
        except Unfit as error:
            raise ProtocolError(
                f"The answer of {self._target} to {method} does not fit: {listed(error.problems)}."
            ) from None


class TaskUpdates(AsyncGenerator[TaskEvent, None]):
    """The events of a task, to be iterated at once or, as in Naylence, after an `await`."""

    def __init__(self, events: AsyncGenerator[TaskEvent, None]) -> None:
        self._events = events

    def __await__(self) -> Generator[Any, Any, Self]:
        yield from ()
        return self

    async def asend(self, value: None, /) -> TaskEvent:
        """(Async generator) Read the next event."""
        return await self._events.asend(value)

    async def athrow(self, *error: Any) -> TaskEvent:
        """(Async generator) Resume with an error."""
        return await self._events.athrow(*error)

    async def aclose(self) -> None:
        """(Async generator) Leave."""
        await self._events.aclose()
