"""Tasks: what agents make of them, what their callers see, and what is left after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from strongroom import (
    Agent,
    Artifact,
    BackgroundTaskAgent,
    BaseAgent,
    Conflict,
    DataPart,
    DuplicateTask,
    Fabric,
    InvalidArguments,
    MemoryProvider,
    Message,
    OperationFailed,
    PushNotificationConfig,
    PushNotificationNotSupported,
    RateLimitExceeded,
    Settings,
    Task,
    TaskArtifactUpdateEvent,
    TaskFailed,
    TaskIdParams,
    TaskNotCancelable,
    TaskNotFound,
    TaskPushNotificationConfig,
    TaskQueryParams,
    TaskSendParams,
    TaskState,
    TaskStatusUpdateEvent,
    UnknownOperation,
    UnsupportedOperation,
    first_text_part,
    make_message,
    make_task,
    make_task_params,
    operation,
)
from strongroom.agents.task_events import StoredEvent
from strongroom.errors import AgentError, Unauthorized
from strongroom.testing import serving
from support.fabrics import eventually, sentinel_agent_and_client

ADDRESS = "tasks@fame.fabric"
PAYLOADS: list[Any] = ["text", "", {"a": [1, None]}, {}, 5, 0, [1, "two"], True, 1.5]


class Echo(BaseAgent):
    """Returns what it gets."""

    async def run_task(self, payload: Any, id: str | None) -> Any:
        return payload


class Raising(BaseAgent):
    """Raises what it was made with."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def run_task(self, payload: Any, id: str | None) -> Any:
        raise self.error

    @operation
    async def operate(self) -> None:
        raise self.error


class Steps(BackgroundTaskAgent):
    """Reports as many artifacts as the payload says, and then waits if it is told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()
        self.runs = 0

    async def run_background_task(self, params: TaskSendParams) -> Any:
        self.runs += 1
        part = params.message.parts[0]
        assert isinstance(part, DataPart)
        for number in range(part.data.get("steps", 0)):
            data = DataPart(data={"step": number})
            await self.update_task_artifact(params.id, Artifact(parts=[data]))
        if part.data.get("waits"):
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if part.data.get("fails"):
            raise RuntimeError("not today")
        return part.data.get("result")


@asynccontextmanager
async def served(
    agent: BaseAgent[Any], storage: MemoryProvider | None = None
) -> AsyncIterator[Any]:
    """A remote of an agent in this process; what can be called on it is not known."""
    async with serving(agent, storage):
        yield Agent.remote_by_address("agent@fame.fabric")


def params(id: str = "t", **payload: Any) -> TaskSendParams:
    return make_task_params(id=id, payload=payload)


def name_of(kind: type[Any]) -> str:
    return kind.__name__


async def seen(remote: Any, id: str = "t", **options: Any) -> list[Any]:
    """States and steps, in the order in which they arrive."""
    updates = remote.subscribe_to_task_updates(params(id), **options)
    return [simple(event) async for event in await updates]


def simple(event: Any) -> Any:
    if isinstance(event, TaskArtifactUpdateEvent):
        part = event.artifact.parts[0]
        assert isinstance(part, DataPart)
        return part.data["step"]
    assert isinstance(event, TaskStatusUpdateEvent)
    return f"{event.status.state.value}{'!' if event.final else ''}"


# --- agents that answer at once -----------------------------------------------------------------


@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
async def test_run_task_returns_what_the_agent_returns(payload: Any) -> None:
    async with sentinel_agent_and_client(Echo(), ADDRESS):
        assert await Agent.remote_by_address(ADDRESS).run_task(payload) == payload


async def test_run_task_without_a_payload_sends_an_empty_object() -> None:
    async with served(Echo()) as remote:
        assert await remote.run_task() == {}


async def test_a_result_of_none_stays_none() -> None:
    class Silent(BaseAgent):
        def run_task(self, payload: Any, id: str | None) -> None:  # type: ignore[override]
            return None

    async with served(Silent()) as remote:
        assert await remote.run_task("a", "b") is None


async def test_a_task_keeps_its_session() -> None:
    async with served(Echo()) as remote:
        task = await remote.start_task(id="t", payload="Hello", session_id="s", history_length=3)
        assert (task.id, task.sessionId, task.status.state) == ("t", "s", TaskState.COMPLETED)
        assert first_text_part(task.status.message) == "Hello"
    async with served(Steps()) as steps:
        for how in ({"params": params("a")}, {"id": "b", "payload": {}, "session_id": "b"}):
            task = await steps.start_task(**how)
            assert task.sessionId == task.id


async def test_an_override_of_start_task_gets_all_that_was_sent() -> None:
    class Forwards(BaseAgent):
        async def start_task(self, params: TaskSendParams) -> Task:
            if params.message.parts:
                task: Task = await Agent.remote_by_address("echo@fame.fabric").start_task(params)
                return task
            return make_task(id=params.id, state=TaskState.COMPLETED, payload={"empty": True})

    async with Fabric(Settings()) as node:
        await node.serve(Echo(), "echo@fame.fabric")
        remote = Agent.remote_by_address(await node.serve(Forwards()))
        assert await remote.run_task({"a": 1}) == {"a": 1}
        empty = TaskSendParams(id="my task #1", message=Message(role="agent", parts=[]))
        task = await remote.start_task(params=empty)
        assert task.status.message.parts[0].data == {"empty": True}


async def test_an_agent_without_tasks_says_so() -> None:
    async with served(BaseAgent()) as remote:
        with pytest.raises(UnsupportedOperation, match="neither run_task"):
            await remote.run_task("a")
        with pytest.raises(UnsupportedOperation):
            await remote.get_task_status(TaskQueryParams(id="t"))
        with pytest.raises(TaskNotCancelable):
            await remote.cancel_task(TaskIdParams(id="t"))
        with pytest.raises(PushNotificationNotSupported):
            await remote.get_push_notification_config(TaskIdParams(id="t"))
        with pytest.raises(UnsupportedOperation):
            await seen(remote)
        with pytest.raises(UnknownOperation):
            await Agent.remote_by_address("agent@fame.fabric").other()


OURS = [kind for kind in AgentError.__subclasses__() if kind.__module__ == AgentError.__module__]


@pytest.mark.parametrize("kind", [*OURS, AgentError], ids=name_of)
async def test_an_agent_s_errors_arrive_as_what_they_are(kind: type[AgentError]) -> None:
    class Narrower(kind):  # type: ignore[misc, valid-type]
        pass

    for error in (kind("because of this"), Narrower("because of this")):
        async with sentinel_agent_and_client(Raising(error), ADDRESS):
            remote = Agent.remote_by_address(ADDRESS)
            for call in (remote.run_task("a"), remote.operate()):
                with pytest.raises(kind, match="because of this") as caught:
                    await call
                assert type(caught.value) is kind


@pytest.mark.parametrize("error", [ValueError("the text"), SystemExit("the text")], ids=repr)
async def test_the_text_of_any_other_error_arrives(error: BaseException) -> None:
    async with served(Raising(error)) as remote:
        with pytest.raises(OperationFailed, match="the text"):
            await remote.run_task("a")


async def test_a_user_s_class_with_the_name_of_one_of_ours_is_not_taken_for_it() -> None:
    namesake = type("Conflict", (Exception,), {})
    async with served(Raising(namesake("mine"))) as remote:
        with pytest.raises(OperationFailed, match="mine") as caught:
            await remote.operate()
        assert not isinstance(caught.value, Conflict)
        assert not isinstance(caught.value, Unauthorized)


async def test_a_malformed_task_is_refused() -> None:
    async with served(Echo()) as remote:
        call = Fabric.current().calls.call
        with pytest.raises(InvalidArguments, match="message"):
            await call(remote._target, "tasks/send", b'{"id": "t"}')


async def test_status_changes_are_looked_for_where_an_agent_reports_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("strongroom.agents.tasks.POLL_SECONDS", 0.01)

    class Own(BaseAgent):
        """Keeps its tasks itself, as many agents of Naylence do."""

        def __init__(self) -> None:
            super().__init__()
            self.states = iter([TaskState.WORKING, TaskState.WORKING, TaskState.COMPLETED])

        async def start_task(self, params: TaskSendParams) -> Task:
            return make_task(id=params.id, state=TaskState.WORKING)

        async def get_task_status(self, params: TaskQueryParams) -> Task:
            return make_task(id=params.id, state=next(self.states), payload="done")

    async with served(Own()) as remote:
        assert await remote.run_task("a") == "done"
    async with served(Own()) as remote:
        assert await seen(remote) == ["working", "completed!"]


async def test_an_override_can_add_to_the_events() -> None:
    class Adding(Steps):
        async def subscribe_to_task_updates(self, params: TaskSendParams) -> AsyncIterator[Any]:
            updates = await super().subscribe_to_task_updates(params)

            async def with_more() -> AsyncIterator[Any]:
                async for event in updates:
                    yield event
                    yield event

            return with_more()

    async with served(Adding()) as remote:
        await remote.start_task(params(steps=1))
        assert await seen(remote) == ["working", "working", 0, 0, "completed!", "completed!"]


async def test_push_endpoints_are_registered_where_an_agent_takes_them() -> None:
    class Pushing(BaseAgent):
        def __init__(self) -> None:
            super().__init__()
            self.configs: dict[str, TaskPushNotificationConfig] = {}

        async def register_push_endpoint(
            self, config: TaskPushNotificationConfig
        ) -> TaskPushNotificationConfig:
            self.configs[config.id] = config
            return config

        async def get_push_notification_config(
            self, params: TaskIdParams
        ) -> TaskPushNotificationConfig:
            return self.configs[params.id]

    config = TaskPushNotificationConfig(
        id="t", pushNotificationConfig=PushNotificationConfig(url=ADDRESS, token="x")
    )
    async with served(Pushing()) as remote:
        assert await remote.register_push_endpoint(config) == config
        assert await remote.get_push_notification_config(TaskIdParams(id="t")) == config


# --- agents that work in the background ---------------------------------------------------------


async def test_a_task_runs_while_its_caller_does_other_things() -> None:
    async with sentinel_agent_and_client(Steps(), ADDRESS):
        remote = Agent.remote_by_address(ADDRESS)
        task = await remote.start_task(params(steps=3, result="done"))
        assert (task.id, task.sessionId, task.status.state) == ("t", "t", TaskState.WORKING)
        assert await seen(remote) == ["working", 0, 1, 2, "completed!"]
        ended = await remote.get_task_status(TaskQueryParams(id="t"))
        assert first_text_part(ended.status.message) == "done"


@pytest.mark.parametrize("payload", [*PAYLOADS, None], ids=repr)
async def test_any_result_ends_a_task(payload: Any) -> None:
    async with served(Steps()) as remote:
        assert await remote.run_task({"result": payload}) == payload


async def test_a_failure_arrives_with_its_text() -> None:
    async with served(Steps()) as remote:
        with pytest.raises(TaskFailed, match="not today") as caught:
            await remote.run_task({"fails": True})
        assert isinstance(caught.value, ValueError)


async def test_every_reader_sees_every_event_and_a_late_one_too() -> None:
    agent = Steps()
    async with served(agent) as remote:
        await remote.start_task(params(steps=50, waits=True))
        early = [asyncio.create_task(seen(remote)) for _ in range(3)]
        await eventually(lambda: agent.runs)
        agent.go_on.set()
        expected = ["working", *range(50), "completed!"]
        assert await asyncio.gather(*early) == [expected] * 3
        assert await seen(remote) == expected


async def test_a_task_nobody_watches_ends_however_much_it_reports() -> None:
    async with served(Steps()) as remote:
        assert await remote.run_task({"steps": 3000, "result": "done"}, "t") == "done"
        assert await seen(remote) == ["working", *range(3000), "completed!"]


async def test_the_oldest_events_are_forgotten_first() -> None:
    async with served(Steps(max_queue_size=100)) as remote:
        await remote.run_task({"steps": 1000}, "t")
        late = await seen(remote)
        assert 100 <= len(late) <= 200
        assert late[-2:] == [999, "completed!"]


async def test_a_reader_who_leaves_changes_nothing_for_others() -> None:
    agent = Steps()
    async with served(agent) as remote:
        await remote.start_task(params(steps=5, waits=True))
        assert await seen(remote, max_items=2) == ["working", 0]
        assert await seen(remote, timeout_ms=50) == ["working", *range(5)]
        async with aclosing(remote.subscribe_to_task_updates(params())) as updates:
            assert simple(await anext(updates)) == "working"
        await remote.unsubscribe_task(TaskIdParams(id="t"))
        agent.go_on.set()
        assert await seen(remote) == ["working", *range(5), "completed!"]


async def test_cancelling_ends_the_coroutine_and_its_events() -> None:
    agent = Steps()
    async with served(agent) as remote:
        running = asyncio.create_task(remote.run_task({"steps": 1, "waits": True}, "t"))
        await eventually(lambda: agent.runs)
        task = await remote.cancel_task(TaskIdParams(id="t"))
        assert task.status.state is TaskState.CANCELED
        await agent.cancelled.wait()
        assert await running is None
        assert not await agent.update_task_artifact("t", Artifact(parts=[]))
        assert not await agent.update_task_state("t", TaskState.WORKING)
        assert await seen(remote) == ["working", 0, "canceled!"]
        assert await remote.cancel_task(TaskIdParams(id="t")) == task


async def test_an_agent_can_report_states_of_its_own() -> None:
    class Asking(BackgroundTaskAgent):
        async def run_background_task(self, params: TaskSendParams) -> str:
            question = make_message("Which one?")
            assert await self.update_task_state(params.id, TaskState.INPUT_REQUIRED, question)
            assert await self.get_task_state(params.id) is TaskState.INPUT_REQUIRED
            return "that one"

    async with served(Asking()) as remote:
        assert await remote.run_task("a", "t") == "that one"
        assert await seen(remote) == ["working", "input-required", "completed!"]


async def test_an_id_is_used_once() -> None:
    agent = Steps()
    async with served(agent) as remote:
        await remote.start_task(params(waits=True))
        with pytest.raises(DuplicateTask):
            await remote.start_task(params())
        agent.go_on.set()
        await seen(remote)
        with pytest.raises(DuplicateTask):
            await remote.start_task(params())
        assert agent.runs == 1


async def test_an_unknown_task_is_not_found() -> None:
    async with served(Steps()) as remote:
        for call in (
            remote.get_task_status(TaskQueryParams(id="x")),
            remote.cancel_task(TaskIdParams(id="x")),
            seen(remote, "x"),
        ):
            with pytest.raises(TaskNotFound):
                await call


async def test_a_task_that_takes_too_long_is_canceled() -> None:
    agent = Steps(max_task_lifetime_ms=20)
    async with served(agent) as remote:
        assert "longer than 0.02 seconds" in await remote.run_task({"waits": True}, "t")
        assert await seen(remote) == ["working", "canceled!"]
        assert agent.cancelled.is_set()


async def test_finished_tasks_are_kept_within_bounds() -> None:
    provider = MemoryProvider()
    async with served(Steps(completed_cache_size=2), provider) as remote:
        for number in range(4):
            await remote.run_task({}, str(number))
        await remote.start_task(params("last"))
        with pytest.raises(TaskNotFound):
            await remote.get_task_status(TaskQueryParams(id="1"))
        await remote.get_task_status(TaskQueryParams(id="2"))
        stored = await provider.own_store(Task, "__tasks")
        assert sorted(task.id for task in (await stored.list()).values()) == ["2", "3", "last"]
    agent = Steps(completed_cache_ttl_sec=0.001)
    async with served(agent, provider) as remote:
        for _ in range(2):  # forgotten, an id can be used again
            await remote.start_task(params())
            with pytest.raises(TaskNotFound):
                while True:
                    await remote.get_task_status(TaskQueryParams(id="t"))
    assert agent.runs == 2


async def test_too_many_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.agents.task_log.MAX_RUNNING", 2)
    async with served(Steps()) as remote:
        for number in range(2):
            await remote.start_task(params(str(number), waits=True))
        with pytest.raises(RateLimitExceeded):
            await remote.start_task(params("one more"))


async def test_a_task_s_own_calls_use_the_agent_s_fabric() -> None:
    class Asks(BackgroundTaskAgent):
        async def run_background_task(self, params: TaskSendParams) -> Any:
            return await Agent.remote_by_address("echo@fame.fabric").run_task("hello")

    async with Fabric(Settings()) as node:
        await node.serve(Echo(), "echo@fame.fabric")
        address = await node.serve(Asks())
        assert await Agent.remote_by_address(address).run_task() == "hello"


async def test_tasks_are_started_by_capability() -> None:
    class Able(Steps):
        @property
        def capabilities(self) -> list[str]:
            return [*super().capabilities, "steps"]

    async with sentinel_agent_and_client(Able(), ADDRESS):
        remote = Agent.remote_by_capabilities(["steps"])
        assert await remote.run_task({"steps": 1, "result": 7}) == 7


# --- restarts -----------------------------------------------------------------------------------


async def test_a_stop_interrupts_what_runs_and_a_restart_knows_all() -> None:
    provider = MemoryProvider()
    agent = Steps()
    async with served(agent, provider) as remote:
        await remote.run_task({"steps": 2, "result": "done"}, "ended")
        await remote.start_task(params("running", waits=True))
        await eventually(lambda: agent.runs == 2)
    assert agent.cancelled.is_set()
    async with served(Steps(), provider) as remote:
        ended = await remote.get_task_status(TaskQueryParams(id="ended"))
        assert first_text_part(ended.status.message) == "done"
        for _ in range(2):
            assert await seen(remote, "ended") == ["working", 0, 1, "completed!"]
        assert await seen(remote, "running") == ["working", "failed!"]
        task = await remote.get_task_status(TaskQueryParams(id="running"))
        assert task.status.state is TaskState.FAILED
        assert "stopped" in (first_text_part(task.status.message) or "")
        with pytest.raises(DuplicateTask):
            await remote.start_task(params("running"))


async def test_a_crash_leaves_a_task_that_says_it_was_interrupted() -> None:
    provider = MemoryProvider()
    stored = await provider.own_store(Task, "__tasks")
    crashed = make_task(id="t", state=TaskState.WORKING)
    await stored.set("agent@fame.fabric t", crashed)
    await stored.set("other@fame.fabric t", crashed)
    async with served(Steps(), provider) as remote:
        assert await seen(remote) == ["failed!"]
        task = await remote.get_task_status(TaskQueryParams(id="t"))
        assert "interrupted" in (first_text_part(task.status.message) or "")
    assert (await stored.get("other@fame.fabric t")) == crashed


async def test_a_task_whose_last_event_was_stored_has_ended_though_its_record_was_not() -> None:
    provider = MemoryProvider()
    stored = await provider.own_store(Task, "__tasks")
    async with served(Steps(), provider) as remote:
        await remote.run_task({"steps": 1, "result": "done"}, "t")
    await stored.set("agent@fame.fabric t", make_task(id="t", state=TaskState.WORKING))
    async with served(Steps(), provider) as remote:
        assert await seen(remote) == ["working", 0, "completed!"]
        task = await remote.get_task_status(TaskQueryParams(id="t"))
        assert first_text_part(task.status.message) == "done"
    ended = await stored.get("agent@fame.fabric t")
    assert ended is not None
    assert ended.status.state is TaskState.COMPLETED


async def test_stored_events_have_bounds_and_go_with_their_task() -> None:
    provider = MemoryProvider()
    events = await provider.own_store(StoredEvent, "__task_events")
    async with served(Steps(max_queue_size=10, completed_cache_size=1), provider) as remote:
        await remote.run_task({"steps": 100}, "first")
        assert 10 <= await events.count() < 20
    async with served(Steps(max_queue_size=10, completed_cache_size=1), provider) as remote:
        late = await seen(remote, "first")
        assert late[-2:] == [99, "completed!"]
        await remote.run_task({"steps": 1}, "second")
        await remote.run_task({"steps": 1}, "third")
        assert await events.count() == 6
    tasks = await provider.own_store(Task, "__tasks")
    for key in await tasks.list():
        await tasks.delete(key)  # as its age does while the node is down
    async with served(Steps(), provider):
        assert await events.count() == 0


# --- functions ----------------------------------------------------------------------------------


async def test_a_function_is_an_agent() -> None:
    async def shout(payload: Any, id: str | None) -> str:
        return f"{payload}!"

    async with Fabric(Settings()) as node:
        addresses = [await node.serve(Agent.from_handler(shout)) for _ in range(2)]
        assert addresses[0] != addresses[1]
        assert await Agent.remote_by_address(addresses[0]).run_task("Hello") == "Hello!"


async def test_many_agents_are_asked_at_once() -> None:
    async with Fabric(Settings()) as node:
        await node.serve(Echo(), "echo@fame.fabric")
        await node.serve(Raising(ValueError("no")), "raising@fame.fabric")
        addresses = ["echo@fame.fabric", "raising@fame.fabric", "nobody@fame.fabric", "no address"]
        found = await Agent.broadcast(addresses, "hello")
        assert [address for address, _ in found] == addresses
        assert found[0][1] == "hello"
        assert [type(result).__name__ for _, result in found[1:]] == [
            "OperationFailed",
            "NoRoute",
            "InvalidAddress",
        ]
        twice = [("echo@fame.fabric", {"n": number}) for number in range(2)]
        assert await Agent.run_many(twice) == twice
        with pytest.raises(OperationFailed):
            await Agent.run_many([("raising@fame.fabric", "a")], gather_exceptions=False)
