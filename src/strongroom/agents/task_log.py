"""The tasks of one agent that run in the background, and their records in `__tasks`.

A record has the task as it is now; an event is stored before the record that it changes. When an
agent starts, it marks what ran when it last ended as failed, so that whoever asks for such a task
learns what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol, Self

from strongroom.agents.a2a import (
    FINAL_STATES,
    Artifact,
    Message,
    Task,
    TaskArtifactUpdateEvent,
    TaskEvent,
    TaskSendParams,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
    make_message,
)
from strongroom.agents.task_events import StoredEvent, TaskEvents
from strongroom.errors import (
    DuplicateTask,
    InvalidKey,
    InvalidTask,
    RateLimitExceeded,
    TaskNotFound,
)
from strongroom.messaging.address import Address
from strongroom.messaging.operations import outcome
from strongroom.messaging.rpc import describe
from strongroom.storage.keys import Key
from strongroom.storage.provider import StorageProvider
from strongroom.storage.records import check_key
from strongroom.storage.typed import KeyValueStore

MAX_RUNNING = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TaskLimits:
    """How much an agent keeps of its tasks."""

    max_events: int = 10_000
    """Events of one task that a late reader can still get; the oldest are forgotten first."""
    lifetime_seconds: float | None = None
    max_finished: int = 1000
    keep_seconds: float = 24 * 3600.0
    """Seconds for which a finished task can be asked for."""


class Worker(Protocol):
    """An agent that does tasks."""

    async def run_background_task(self, params: TaskSendParams) -> Any:
        """Do one."""


class _Entry:
    """One task, its events, and what runs it."""

    def __init__(self, task: Task, events: TaskEvents) -> None:
        self.task = task
        self.events = events
        self.runner: asyncio.Task[None] | None = None
        self.ended_at: float | None = None


class TaskLog:
    """The tasks of one agent."""

    def __init__(
        self,
        worker: Worker,
        store: KeyValueStore[Task],
        events: KeyValueStore[StoredEvent],
        place: str,
        limits: TaskLimits,
    ) -> None:
        self._worker = worker
        self._store = store
        self._events = events
        self._place = place
        self._limits = limits
        self._entries: dict[str, _Entry] = {}
        self._finished: dict[str, _Entry] = {}
        self._is_closing = False
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls, worker: Worker, provider: StorageProvider, address: str, limits: TaskLimits
    ) -> Self:
        """Open the records, and say of each task that did not end that it was interrupted."""
        parsed = Address.parse(address)
        store = await provider.own_store(Task, "__tasks")
        events = await provider.own_store(StoredEvent, "__task_events")
        # Not the path, which may change with the sentinel.
        opened = cls(worker, store, events, f"{parsed.participant}@{parsed.host} ", limits)
        found = [entry.value async for entry in store.scan(opened._place)]
        for task in sorted(found, key=lambda each: each.status.timestamp.isoformat()):
            await opened._take_up(task)
        await opened._forget_events()
        return opened

    async def _take_up(self, task: Task) -> None:
        """A task of the last run: if it did not end, it was interrupted."""
        entry = self._add_entry(task)
        ended = await entry.events.load()
        if ended is None and task.status.state not in FINAL_STATES:
            text = "The task was interrupted: its agent's node ended while it ran."
            await self.update(task.id, TaskState.FAILED, make_message(text))
        elif ended is None:  # its events are lost, but for what the record says
            self._keep(entry, task.status)
            await entry.events.add(
                TaskStatusUpdateEvent(id=task.id, status=task.status, final=True)
            )
        elif task.status.state not in FINAL_STATES:
            self._keep(entry, ended)
            await self._store.set(self._place + task.id, entry.task, ttl=self._limits.keep_seconds)
        else:
            self._keep(entry, ended)

    async def _forget_events(self) -> None:
        """Delete the events of tasks that the storage has forgotten by their age."""
        known = {self._key(task_id) for task_id in self._entries}
        keys = [key async for key in self._events.keys(Key(self._place))]
        forgotten = {key for each in keys if (key := Key.of(each).first(2)) not in known}
        for key in forgotten:
            await TaskEvents(self._events, key, self._limits.max_events).forget()

    async def close(self) -> None:
        """Cancel what runs, and store that it was."""
        self._is_closing = True
        runners = [entry.runner for entry in self._entries.values() if entry.runner is not None]
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    # --- one task ---

    async def start(self, params: TaskSendParams) -> Task:
        """Store a task, and run it.

        Raises:
            DuplicateTask: The agent has a task with this id.
            InvalidTask: The id is too long.
            RateLimitExceeded: Too many tasks are running.
        """
        await self._forget_old()
        if params.id in self._entries:
            raise DuplicateTask("A task with this id was started before.", remedy="a new id")
        running = len(self._entries) - len(self._finished)
        if running >= MAX_RUNNING:
            raise RateLimitExceeded(f"{running} tasks are running.", remedy="try again later")
        try:
            check_key(self._place + params.id)
        except InvalidKey:
            raise InvalidTask("The task's id is too long.", remedy="a shorter id") from None
        status = TaskStatus(state=TaskState.WORKING)
        task = Task(
            id=params.id, sessionId=params.sessionId, status=status, metadata=params.metadata
        )
        entry = self._add_entry(task)
        try:
            await entry.events.add(TaskStatusUpdateEvent(id=params.id, status=status))
            await self._store.set(self._place + params.id, task)
        except BaseException:
            del self._entries[params.id]
            raise
        entry.runner = self._loop.create_task(self._run(entry, params))
        return task

    async def cancel(self, task_id: str) -> Task:
        """End a task; one that has ended stays as it is."""
        entry = self._find(task_id)
        if await self.update(task_id, TaskState.CANCELED) and entry.runner is not None:
            entry.runner.cancel()
        return entry.task

    def get(self, task_id: str) -> Task:
        """The task as it is now."""
        return self._find(task_id).task

    def read(self, task_id: str) -> AsyncGenerator[TaskEvent, None]:
        """Every event of the task."""
        return self._find(task_id).events.read()

    async def add_artifact(self, task_id: str, artifact: Artifact) -> bool:
        """Report what a task has made; False if it has ended."""
        entry = self._find(task_id)
        if entry.task.status.state in FINAL_STATES:
            return False
        await entry.events.add(TaskArtifactUpdateEvent(id=task_id, artifact=artifact))
        return True

    async def update(self, task_id: str, state: TaskState, message: Message | None = None) -> bool:
        """Store and report another state of a task; False if it has ended."""
        entry = self._find(task_id)
        if entry.task.status.state in FINAL_STATES:
            return False
        is_final = state in FINAL_STATES
        status = TaskStatus(state=state, message=message)
        if is_final:
            self._keep(entry, status)
        else:
            entry.task = entry.task.model_copy(update={"status": status})
        await entry.events.add(TaskStatusUpdateEvent(id=task_id, status=status, final=is_final))
        ttl = self._limits.keep_seconds if is_final else None
        await self._store.set(self._place + task_id, entry.task, ttl=ttl)
        return True

    # --- running and forgetting ---

    async def _run(self, entry: _Entry, params: TaskSendParams) -> None:
        state, message = await self._work(params)
        try:
            await self.update(entry.task.id, state, message)
        except Exception:
            log.exception("the end of a task was not stored")

    async def _work(self, params: TaskSendParams) -> tuple[TaskState, Message | None]:
        limit = asyncio.timeout(self._limits.lifetime_seconds)
        try:
            async with limit:
                result = await outcome(self._worker.run_background_task(params))
            return TaskState.COMPLETED, make_message(result)
        except asyncio.CancelledError:
            if self._is_closing:
                return TaskState.FAILED, make_message("The agent stopped before the task ended.")
            return TaskState.CANCELED, None
        except BaseException as error:
            if limit.expired():
                text = f"The task took longer than {self._limits.lifetime_seconds:g} seconds."
                return TaskState.CANCELED, make_message(text)
            log.info("run_background_task() raised", exc_info=error)
            told = describe(error, "run_background_task", has_begun=True)
            return TaskState.FAILED, make_message(told.message)

    def _keep(self, entry: _Entry, status: TaskStatus) -> None:
        """The task has ended: keep it for a while."""
        entry.task = entry.task.model_copy(update={"status": status})
        entry.ended_at = self._loop.time()
        self._finished[entry.task.id] = entry

    def _add_entry(self, task: Task) -> _Entry:
        events = TaskEvents(self._events, self._key(task.id), self._limits.max_events)
        entry = self._entries[task.id] = _Entry(task, events)
        return entry

    def _key(self, task_id: str) -> Key:
        return Key(self._place, task_id)

    def _find(self, task_id: str) -> _Entry:
        entry = self._entries.get(task_id)
        if entry is None or self._is_old(entry):
            raise TaskNotFound("The agent has no task with this id.", remedy="check the id")
        return entry

    def _is_old(self, entry: _Entry) -> bool:
        kept = self._limits.keep_seconds
        return entry.ended_at is not None and self._loop.time() - entry.ended_at > kept

    async def _forget_old(self) -> None:
        """Forget the tasks that ended first, as far as they are old or too many."""
        for task_id, entry in list(self._finished.items()):
            if len(self._finished) <= self._limits.max_finished and not self._is_old(entry):
                return
            del self._finished[task_id], self._entries[task_id]
            await entry.events.forget()
            await self._store.delete(self._place + task_id)
