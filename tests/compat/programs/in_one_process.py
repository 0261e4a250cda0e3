"""Programs of one process, one function each, in the manner of Naylence's simple examples."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from naylence.agent import (
    Agent,
    BaseAgent,
    Message,
    Task,
    TaskQueryParams,
    TaskSendParams,
    TaskState,
    first_text_part,
    make_task,
    make_task_params,
)
from naylence.fame.core import FameAddress, FameFabric
from naylence.fame.service import operation
from naylence.fame.util.logging import enable_logging

enable_logging(log_level="warning")


async def hello():
    class HelloAgent(BaseAgent):
        @operation
        async def hello(self):
            return "Hello, World!"

    async with FameFabric.create() as fabric:
        remote = Agent.remote_by_address(await fabric.serve(HelloAgent()))
        print(await remote.hello())


async def echo():
    class EchoAgent(BaseAgent):
        async def run_task(self, payload: Any, id: Any) -> Any:
            return payload

    async with FameFabric.create() as fabric:
        remote = Agent.remote_by_address(await fabric.serve(EchoAgent()))
        print(await remote.run_task("Hello"), await remote.run_task(payload={"a": 1}))


async def rpc():
    class SimpleAgent(BaseAgent):
        @operation
        async def add(self, x: int, y: int) -> int:
            return x + y

        @operation(name="fib_stream", streaming=True)
        async def fib(self, n: int):
            a, b = 0, 1
            for _ in range(n):
                yield a
                a, b = b, a + b

    async with FameFabric.create() as fabric:
        agent = Agent.remote_by_address(await fabric.serve(SimpleAgent()))
        print(await agent.add(x=3, y=4))
        print([each async for each in await agent.fib_stream(_stream=True, n=6)])


async def function():
    async with FameFabric.create() as fabric:

        async def year(payload: Any, id: Any) -> Any:
            return str(datetime.now(UTC).year >= 2020)

        remote = Agent.remote_by_address(await fabric.serve(Agent.from_handler(year)))
        print(await remote.run_task(payload="Hello"))


async def a2a():
    class A2AAgent(BaseAgent):
        async def start_task(self, params: TaskSendParams) -> Task:
            return make_task(id=params.id, state=TaskState.COMPLETED, payload={"result": "Hello!"})

    async with FameFabric.create() as fabric:
        remote = Agent.remote_by_address(await fabric.serve(A2AAgent("simple-agent")))
        task = await remote.start_task(
            params=TaskSendParams(id="my task #1", message=Message(role="agent", parts=[]))
        )
        print(task.status.state, task.status.message.parts[0].data)


async def ping_pong():
    class Pong(BaseAgent):
        async def start_task(self, params: TaskSendParams) -> Task:
            text = f"Pong: {first_text_part(params.message)}"
            return make_task(id=params.id, state=TaskState.COMPLETED, payload=text)

    class Ping(BaseAgent):
        def __init__(self, name: str, pong: FameAddress):
            super().__init__(name)
            self._pong = pong

        async def start_task(self, params: TaskSendParams) -> Task:
            return await Agent.remote_by_address(self._pong).start_task(params)

    async with FameFabric.create() as fabric:
        pong = await fabric.serve(Pong("pong-agent"))
        ping = Agent.remote_by_address(await fabric.serve(Ping("ping-agent", pong)))
        task = await ping.start_task(make_task_params(id="task-123", payload="Hello, Pong!"))
        print(task.id, first_text_part(task.status.message))


async def with_a_background_task():
    class BackgroundTaskAgent(BaseAgent):
        def __init__(self, *args):
            super().__init__(*args)
            self._tasks: dict[str, TaskState] = {}
            self._done = asyncio.Event()

        async def start_task(self, params: TaskSendParams) -> Task:
            self._tasks[params.id] = TaskState.WORKING
            self._running = asyncio.create_task(self._run(params.id))
            return make_task(id=params.id, state=TaskState.WORKING, payload={})

        async def _run(self, task_id: str):
            await self._done.wait()
            self._tasks[task_id] = TaskState.COMPLETED

        async def get_task_status(self, params: TaskQueryParams) -> Task:
            state = self._tasks.get(params.id, TaskState.UNKNOWN)
            return make_task(id=params.id, state=state, payload={})

    async with FameFabric.create() as fabric:
        agent = BackgroundTaskAgent("background-agent")
        remote = Agent.remote_by_address(await fabric.serve(agent))
        first = await remote.start_task(
            params=TaskSendParams(id="a", message=Message(role="agent", parts=[]))
        )
        agent._done.set()
        while (await remote.get_task_status(TaskQueryParams(id="a"))).status.state == "working":
            await asyncio.sleep(0)
        print(
            first.status.state, (await remote.get_task_status(TaskQueryParams(id="b"))).status.state
        )
