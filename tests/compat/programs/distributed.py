"""Agents and their clients below one sentinel, in the manner of Naylence's other examples.

Of each class X, `x` is the client; the models behind agents that ask one are functions here.
"""

import asyncio
from typing import Any

from naylence.agent import (
    Agent,
    Artifact,
    BackgroundTaskAgent,
    BaseAgent,
    BaseAgentState,
    DataPart,
    PushNotificationConfig,
    Task,
    TaskArtifactUpdateEvent,
    TaskIdParams,
    TaskPushNotificationConfig,
    TaskSendParams,
    TaskState,
    TaskStatusUpdateEvent,
    configs,
    first_data_part,
    make_task,
    make_task_params,
)
from naylence.agent.configs import CLIENT_CONFIG
from naylence.fame.core import (
    AGENT_CAPABILITY,
    DeliveryAckFrame,
    FameFabric,
    FameMessageResponse,
    generate_id,
)
from naylence.fame.service import operation
from naylence.fame.util import logging
from pydantic import BaseModel, Field

logger = logging.getLogger(__name__)


class Hello(BaseAgent):
    async def run_task(self, payload: Any, id: Any) -> Any:
        return payload


async def hello():
    async with FameFabric.create(root_config=CLIENT_CONFIG):
        print(await Agent.remote_by_address("hello@fame.fabric").run_task("Hello, World!"))


class Able(BaseAgent):
    @property
    def capabilities(self):
        return [AGENT_CAPABILITY, "math.add"]

    @operation
    async def add(self, x: int, y: int) -> int:
        return x + y

    @operation(name="fib_stream", streaming=True)
    async def fib(self, n: int):
        for each in range(n):
            yield each


async def able():
    async with FameFabric.create(root_config=CLIENT_CONFIG):
        agent = Agent.remote_by_capabilities(["math.add"])
        print(await agent.add(x=3, y=4))
        print([each async for each in await agent.fib_stream(_stream=True, n=3)])


class Cancellable(BackgroundTaskAgent):
    async def run_background_task(self, params: TaskSendParams) -> None:
        for step in range(1, 10):
            if await self.get_task_state(params.id) == TaskState.CANCELED:
                break
            await self.update_task_artifact(
                params.id, Artifact(parts=[DataPart(data={"progress": step / 10})])
            )
            await asyncio.sleep(0.01)


async def cancellable():
    async with FameFabric.create(root_config=CLIENT_CONFIG):
        agent = Agent.remote_by_address("cancellable@fame.fabric")
        task_id = generate_id()
        await agent.start_task(make_task_params(id=task_id))
        async for evt in await agent.subscribe_to_task_updates(make_task_params(id=task_id)):
            if isinstance(evt, TaskStatusUpdateEvent):
                print(f"[STATUS] {evt.status.state}")
            elif isinstance(evt, TaskArtifactUpdateEvent):
                progress = evt.artifact.parts[0].data["progress"]
                print(f"[DATA ] progress: {progress}")
                if progress >= 0.2:
                    await agent.cancel_task(TaskIdParams(id=task_id))


class Sending(BackgroundTaskAgent):
    def __init__(self):
        super().__init__()
        self._configs: dict[str, TaskPushNotificationConfig] = {}

    async def run_background_task(self, params: TaskSendParams):
        config = self._configs[params.id]
        for number in range(3):
            await FameFabric.current().send_message(
                config.pushNotificationConfig.url, {"task_id": params.id, "message": number}
            )
        await asyncio.sleep(0.05)

    async def register_push_endpoint(
        self, config: TaskPushNotificationConfig
    ) -> TaskPushNotificationConfig:
        self._configs[config.id] = config
        return config


class Receiving(BackgroundTaskAgent):
    def __init__(self):
        super().__init__()
        self._received: dict[str, list] = {}

    async def run_background_task(self, params: TaskSendParams) -> Any:
        agent = Agent.remote_by_address("sending@fame.fabric")
        task_id = generate_id()
        self._received[task_id] = []
        push = PushNotificationConfig(url="receiving@fame.fabric")
        await agent.register_push_endpoint(
            TaskPushNotificationConfig(id=task_id, pushNotificationConfig=push)
        )
        await agent.run_task(id=task_id)
        return {"notifications": sorted(self._received[task_id])}

    async def on_message(self, message: dict):
        self._received[message["task_id"]].append(message["message"])


async def receiving():
    async with FameFabric.create(root_config=configs.CLIENT_CONFIG):
        print(await Agent.remote_by_address("receiving@fame.fabric").run_task())


class Analysing(BaseAgent):
    async def run_task(self, payload: Any, id: Any) -> Any:
        result = await Agent.broadcast(["hello@fame.fabric", "nobody@fame.fabric"], payload)
        return {"one": result[0][1], "other": str(type(result[1][1]).__name__)}


async def analysing():
    async with FameFabric.create(root_config=configs.CLIENT_CONFIG):
        print(await Agent.remote_by_address("analysing@fame.fabric").run_task("text"))


class Conversation(BaseModel):
    system_prompt: str
    history: list[dict[str, str]] = Field(default_factory=list)


class Chatting(BaseAgent):
    def __init__(self):
        super().__init__()
        self._states: dict[str, Conversation] = {}

    async def start_task(self, params: TaskSendParams) -> Task:
        self._states[params.id] = Conversation.model_validate(first_data_part(params.message))
        logger.info("started_conversation", task_id=params.id)
        return make_task(id=params.id, state=TaskState.WORKING, payload="")

    @operation
    async def run_turn(self, task_id: str, user_message: str) -> str:
        state = self._states[task_id]
        state.history.append({"role": "user", "content": user_message})
        return f"{state.system_prompt} {len(state.history)}"

    @operation
    async def end_conversation(self, task_id: str):
        self._states.pop(task_id, None)
        logger.trace("finished_conversation", task_id=task_id)


async def chatting():
    async with FameFabric.create(root_config=configs.NODE_CONFIG):
        agent = Agent.remote_by_address("chatting@fame.fabric")
        number = generate_id()
        await agent.start_task(id=number, history_length=10, payload={"system_prompt": "Ahoy"})
        print(await agent.run_turn(number, ""), await agent.run_turn(number, "Who?"))
        print(await agent.end_conversation(number))


class Counted(BaseAgentState):
    value: str | None = None
    count: int = 0


class Persistent(BaseAgent[Counted]):
    @operation
    async def store_value(self, value: str) -> Counted:
        async with self.state as state:
            state.value = value
            return state

    @operation
    async def retrieve_value(self) -> Counted | None:
        async with self.state as state:
            return state

    async def on_message(self, message: Any) -> FameMessageResponse | None:
        async with self.state as state:
            state.count += 1
        return None


async def persistent():
    async with FameFabric.create(root_config=CLIENT_CONFIG) as fabric:
        agent = Agent.remote_by_address("persistent@fame.fabric")
        print(await agent.retrieve_value(), await agent.store_value("a"))
        ack: DeliveryAckFrame | None = await fabric.send_message("persistent@fame.fabric", "hello")
        while not (state := await agent.retrieve_value())["count"]:
            await asyncio.sleep(0.01)
        print(state, ack is None or ack.ok)
