"""HTTP for those who are not on the fabric: what they send, what they get, who is let in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from strongroom import BaseAgent, Fabric, Sentinel, Settings, operation
from strongroom.errors import AgentError, ListenFailed, SettingsError, Unauthorized
from strongroom.gateway.server import serving_http
from support.fabrics import eventually, fabric
from support.http import Answer, HttpClient
from support.processes import free_port

RPC, MESSAGES = "/fame/v1/gateway/rpc", "/fame/v1/gateway/messages"
ADDRESS = "desk@fame.fabric"


class Desk(BaseAgent):
    """What the tests call."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []
        self.is_counting = False

    @property
    def capabilities(self) -> list[str]:
        return ["desk.work"]

    @operation
    async def echo(self, value: Any) -> Any:
        return value

    @operation
    async def nothing(self) -> None: ...

    @operation
    async def fail(self, kind: str) -> None:
        raise {"agent": AgentError, "unauthorized": Unauthorized}.get(kind, ValueError)("as asked")

    @operation
    async def wait(self) -> None:
        await asyncio.Event().wait()

    @operation
    async def count(self, end: int, error: str = "") -> AsyncIterator[dict[str, int]]:
        self.is_counting = True
        try:
            for number in range(end):
                yield {"number": number}
            if error:
                raise ValueError(error)
            if not end:
                await asyncio.Event().wait()
        finally:
            self.is_counting = False

    async def on_message(self, message: Any) -> None:
        self.messages.append(message)


class Door(HttpClient):
    """Calls the desk through its gateway."""

    async def call(self, method: str, timeout: float = 5000, **params: Any) -> Answer:
        body = {"targetAddr": ADDRESS, "method": method, "params": params, "timeoutMs": timeout}
        return await self.post(RPC, body)

    async def stream(self, method: str, **params: Any) -> Answer:
        body = {"targetAddr": ADDRESS, "method": method, "params": params}
        return await self.post(RPC, body, Accept="text/event-stream")


@asynccontextmanager
async def desk(
    settings: Settings | None = None, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[Desk, Door]]:
    """An agent on a node of its own, and the gateway of that node."""
    agent = Desk()
    async with (
        Fabric(settings or Settings(gateway_port=0)) as node,
        serving_http(node) as port,
    ):
        await node.serve(agent, ADDRESS)
        yield agent, Door(port, headers or {})


# --- calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, 0, False, "", 1.5, 2**63, "\u2028 ü\n", [], {"a": [None]}, "x" * 100_000]
)
async def test_a_result_is_what_the_operation_returned(value: Any) -> None:
    async with desk() as (_, door):
        answer = await door.call("echo", value=value)
        assert (answer.status, answer.json) == (200, {"ok": True, "result": value})


async def test_an_agent_is_found_by_its_capabilities() -> None:
    async with desk() as (_, door):
        body = {"capabilities": ["desk.work"], "method": "echo", "params": {"value": 1}}
        assert (await door.post(RPC, body)).json == {"ok": True, "result": 1}
        assert (await door.call("nothing")).json == {"ok": True, "result": None}


@pytest.mark.parametrize(
    ("call", "status", "kind"),
    [
        ({"method": "missing"}, 404, "UnknownOperation"),
        ({"method": "echo", "targetAddr": "nobody@fame.fabric"}, 404, "NoRoute"),
        ({"method": "echo", "targetAddr": "no address"}, 400, "InvalidAddress"),
        ({"method": "echo"}, 400, "InvalidArguments"),
        ({"method": "count", "params": {"end": "x"}}, 400, "InvalidArguments"),
        ({"method": "fail", "params": {"kind": "agent"}}, 500, "AgentError"),
        ({"method": "fail", "params": {"kind": "other"}}, 500, "OperationFailed"),
        ({"method": "fail", "params": {"kind": "unauthorized"}}, 403, "Unauthorized"),
        ({"method": "wait", "timeoutMs": 50}, 504, "CallTimeout"),
    ],
)
async def test_an_error_has_its_status_and_its_type(
    call: dict[str, Any], status: int, kind: str
) -> None:
    async with desk() as (_, door):
        answer = await door.post(RPC, {"targetAddr": ADDRESS} | call)
        assert (answer.status, answer.json["ok"], answer.json["type"]) == (status, False, kind)
        assert answer.json["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"targetAddr": "desk@fame.fabric", "method": "echo", "params": {"value": NaN}}',
        b'{"targetAddr": "desk@fame.fabric", "method": "echo", "params": {"value": "\xff"}}',
        {"targetAddr": ADDRESS},
        {"method": "echo"},
        {"method": "echo", "targetAddr": ADDRESS, "capabilities": ["a"]},
        {"method": "echo", "targetAddr": ADDRESS, "params": [1]},
        {"method": "echo", "targetAddr": ADDRESS, "timeoutMs": 0},
        {"method": "echo", "targetAddr": ADDRESS, "timeoutMs": 10**9},
        {"method": "echo", "targetAddr": ADDRESS, "timeout": 5},
        {"method": "", "targetAddr": ADDRESS},
        {"method": "x" * 257, "targetAddr": ADDRESS},
        {"method": "echo", "targetAddr": "x" * 600},
        {"method": "echo", "capabilities": []},
        {"method": "echo", "capabilities": ["x"] * 17},
    ],
    ids=repr,
)
async def test_a_body_that_is_wrong_is_refused_with_the_reason(body: Any) -> None:
    async with desk() as (_, door):
        answer = await door.post(RPC, body)
        assert (answer.status, answer.json["ok"]) == (400, False)
        assert answer.json["error"].startswith(("The body of the request", "echo()"))
        assert (await door.call("echo", value=1)).status == 200


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with desk() as (_, door):
        assert (await door.call("echo", value="x" * 300_000)).status == 413
        assert (await door.call("echo", value="x" * (256 * 1024 - 120))).status == 413
        assert (await door.call("echo", value="x" * 200_000)).status == 200


async def test_unknown_paths_and_methods_are_refused_in_json() -> None:
    async with desk() as (_, door):
        assert (await door.get("/fame/v1/gateway/none")).json == {"ok": False, "error": "Not Found"}
        assert (await door.get(RPC)).status == 405


# --- streams ----------------------------------------------------------------------------------


async def test_the_items_of_a_stream_arrive_as_events() -> None:
    async with desk() as (_, door):
        answer = await door.stream("count", end=3)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.split("\n\n") == [
            'data: {"number":0}',
            'data: {"number":1}',
            'data: {"number":2}',
            "event: end\ndata: {}",
            "",
        ]


async def test_items_before_an_error_arrive_and_then_the_error() -> None:
    async with desk() as (_, door):
        *items, error, _ = (await door.stream("count", end=2, error="no more")).text.split("\n\n")
        assert items == ['data: {"number":0}', 'data: {"number":1}']
        kind, data = error.split("\n")
        assert kind == "event: error"
        assert json.loads(data.removeprefix("data: "))["type"] == "OperationFailed"


async def test_a_stream_that_cannot_begin_has_the_status_of_a_call() -> None:
    async with desk() as (_, door):
        assert (await door.stream("missing")).status == 404
        assert (await door.stream("count", end="x")).status == 400


async def test_a_stream_ends_when_its_reader_is_gone() -> None:
    async with desk() as (agent, door):
        body = {"targetAddr": ADDRESS, "method": "count", "params": {"end": 0}}
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        data = json.dumps(body).encode()
        head = f"POST {RPC} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await eventually(lambda: agent.is_counting)
        writer.close()
        await eventually(lambda: not agent.is_counting)
        del reader


# --- messages ---------------------------------------------------------------------------------


async def test_a_message_arrives_with_its_type_and_payload() -> None:
    async with desk() as (agent, door):
        body = {"targetAddr": ADDRESS, "type": "note", "payload": {"a": [1, None]}}
        answer = await door.post(MESSAGES, body)
        assert (answer.status, answer.json) == (202, {"status": "message_accepted"})
        answer = await door.post(MESSAGES, {"capabilities": ["desk.work"], "payload": 5})
        assert answer.status == 202
        await eventually(lambda: len(agent.messages) == 2)
        assert agent.messages == [
            {"type": "note", "payload": {"a": [1, None]}},
            {"type": None, "payload": 5},
        ]


async def test_a_message_to_nobody_is_refused() -> None:
    async with desk() as (_, door):
        answer = await door.post(MESSAGES, {"targetAddr": "nobody@fame.fabric", "payload": 5})
        assert (answer.status, answer.json["type"]) == (404, "NoRoute")


# --- who is let in ----------------------------------------------------------------------------


async def test_a_token_is_asked_for_in_each_request() -> None:
    settings = Settings(gateway_port=0, admission_token="the token")
    async with desk(settings) as (_, door):
        for value in ("", "Bearer", "Bearer another", "Basic the token", "the token"):
            answer = await door.post(RPC, {}, Authorization=value)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await door.get("/openapi.json")).status == 401
        assert (await door.get("/fame/v1/gateway/health", Authorization="bearer the token")).json


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}],
    ids=str,
)
async def test_a_web_page_from_elsewhere_is_refused(headers: dict[str, str]) -> None:
    async with desk(headers=headers) as (agent, door):
        body = {"targetAddr": ADDRESS, "payload": 5}
        assert (await door.post(MESSAGES, body)).status == 403
        assert agent.messages == []


async def test_a_web_page_that_is_allowed_may_call() -> None:
    page = "https://example.org"
    settings = Settings(gateway_port=0, allowed_origins=(page,), admission_token="t")
    async with desk(settings, {"Origin": page}) as (_, door):
        asks = {"Access-Control-Request-Method": "POST"}
        asks["Access-Control-Request-Headers"] = "authorization,content-type"
        allowed = await asyncio.to_thread(door.request, "OPTIONS", RPC, None, asks)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, page)
        body = {"targetAddr": ADDRESS, "method": "echo", "params": {"value": 1}}
        answer = await door.post(RPC, body, Authorization="Bearer t")
        assert answer.json == {"ok": True, "result": 1}
        assert answer.headers["access-control-allow-origin"] == page


async def test_a_gateway_that_anyone_could_reach_needs_a_token() -> None:
    async with Fabric(Settings(gateway_port=0, listener_host="0.0.0.0")) as node:
        with pytest.raises(SettingsError, match="anyone"):
            await serving_http(node).__aenter__()


# --- the server -------------------------------------------------------------------------------


async def test_a_sentinel_serves_agents_of_others_by_http() -> None:
    port = free_port()
    settings = Settings(listener_port=0, gateway=True, gateway_port=port)
    async with Sentinel(settings) as hub, fabric(hub) as node:
        await node.serve(Desk(), ADDRESS)
        assert (await Door(port, {}).call("echo", value=[1])).json == {"ok": True, "result": [1]}
    with pytest.raises(OSError):
        await Door(port, {}).call("echo", value=1)


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with Fabric(Settings(gateway_port=0)) as node, serving_http(node) as port:
        with pytest.raises(ListenFailed, match=str(port)):
            await Fabric(Settings(gateway=True, gateway_port=port)).start()


async def test_a_stopping_node_ends_its_calls() -> None:
    settings = Settings(gateway_port=0, stop_grace_seconds=0)
    async with desk(settings) as (agent, door):
        calling = asyncio.create_task(door.stream("count", end=0))
        await eventually(lambda: agent.is_counting)
    answer = await calling
    assert (answer.status, answer.json["ok"]) == (503, False)


async def test_the_description_names_each_path_and_the_page_shows_it() -> None:
    async with desk() as (_, door):
        described = (await door.get("/openapi.json")).json
        assert {RPC, MESSAGES, "/fame/v1/gateway/health"} == set(described["paths"])
        page = await door.get("/")
        assert RPC in page.text
        assert "<script" not in page.text
