"""An agent as a part of a FastAPI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from strongroom import BaseAgent, operation
from strongroom.gateway.agent_router import create_agent_router
from support.fabrics import eventually
from support.http import HttpClient
from support.processes import free_port

PATH = "/fame/v1/jsonrpc"


class Greeter(BaseAgent):
    """Greets people.

    In several ways.
    """

    @operation
    async def greet(self, name: str) -> str:
        """Say hello."""
        return f"Hello, {name}!"

    @operation
    async def spell(self, name: str) -> AsyncIterator[str]:
        for letter in name:
            yield letter
        if name == "fail":
            raise ValueError("as asked")

    async def run_task(self, payload: Any, id: str | None = None) -> Any:
        return {"done": payload}


class WithCard(Greeter):
    async def get_agent_card(self) -> dict[str, str]:
        return {"name": "of its own"}


@asynccontextmanager
async def served(agent: BaseAgent) -> AsyncIterator[HttpClient]:
    app, port = FastAPI(), free_port()
    app.include_router(create_agent_router(agent))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    running = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    try:
        yield HttpClient(port, {})
    finally:
        server.should_exit = True
        await running


def request(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


async def test_operations_and_tasks_are_called_by_json_rpc() -> None:
    async with served(Greeter()) as client:
        answer = await client.post(PATH, request("greet", name="Ada"))
        assert answer.json == {"jsonrpc": "2.0", "id": 7, "result": "Hello, Ada!"}
        message = {"role": "agent", "parts": [{"type": "data", "data": {"a": 1}}]}
        task = (await client.post(PATH, request("tasks/send", id="t", message=message))).json
        assert task["result"]["status"]["state"] == "completed"


async def test_a_stream_is_answered_with_events() -> None:
    async with served(Greeter()) as client:
        text = (await client.post(PATH, request("spell", name="ab"))).text
        events = [json.loads(each.removeprefix("data: ")) for each in text.split("\n\n") if each]
        assert [each["result"] for each in events] == ["a", "b"]
        text = (await client.post(PATH, request("spell", name="fail"))).text
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["message"] == "as asked"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        ({"jsonrpc": "2.0"}, -32600),
        (request("missing"), -32601),
        (request("greet"), -32602),
        (request("greet", name=5), -32602),
        (request("tasks/get", id="t"), -32004),
    ],
    ids=repr,
)
async def test_an_error_has_the_code_of_json_rpc(body: Any, code: int) -> None:
    async with served(Greeter()) as client:
        answer = await client.post(PATH, body)
        assert (answer.status, answer.json["error"]["code"]) == (200, code)


async def test_the_card_is_made_from_the_class_or_is_the_agent_s_own() -> None:
    async with served(Greeter()) as client:
        card = (await client.get(f"{PATH}/agent.json")).json
        assert (card["name"], card["description"]) == ("greeter", "Greets people.")
        assert card["url"] == f"http://127.0.0.1:{client.port}{PATH}"
        skills = {each["id"]: each["description"] for each in card["skills"]}
        assert skills == {"greet": "Say hello.", "spell": ""}
    async with served(WithCard()) as client:
        assert (await client.get(f"{PATH}/agent.json")).json == {"name": "of its own"}
