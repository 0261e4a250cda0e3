"""An agent as a part of a FastAPI application: JSON-RPC over HTTP, without a fabric."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Raw
from pydantic import BaseModel

from strongroom.gateway.answers import event, streamed, unless_gone
from strongroom.messaging.operations import operations_of, outcome
from strongroom.messaging.rpc import INVALID_REQUEST, ErrorDetail, describe, encode, read_request
from strongroom.messaging.rpc import Response as RpcResponse

PREFIX = "/fame/v1/jsonrpc"
PARSE_ERROR = -32700
ERRORS = (Exception, SystemExit)

log = logging.getLogger(__name__)


def create_agent_router(agent: Any, prefix: str = PREFIX) -> APIRouter:
    """The tasks and operations of an agent as a FastAPI router.

    >>> from fastapi import FastAPI
    >>> app = FastAPI()
    >>> app.include_router(create_agent_router(StorageAgent()))

    `POST` takes a JSON-RPC 2.0 request for `tasks/send` and the like, or for an operation by its
    name; what streams answers with server-sent events. `GET …/agent.json` is the agent's card: that
    of its `get_agent_card()`, or one made from its class. Who may call is up to the application.

    Args:
        agent: It need not be served.
        prefix: The path of the router.
    """
    router, resident = APIRouter(prefix=prefix), agent.__resident__()

    @router.post("", summary="Call the agent, by JSON-RPC 2.0")
    async def call(request: Request) -> Response:
        try:
            asked = read_request(await request.body())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            is_json = isinstance(error, msgspec.ValidationError)
            wrong = ErrorDetail(INVALID_REQUEST if is_json else PARSE_ERROR, f"{error}.")
            return _answer(RpcResponse(error=wrong))
        has_begun = False
        try:
            begun = resident.invoke(asked.method, asked.params)
            has_begun = True
            if not isinstance(begun, AsyncGenerator):
                return _answer(RpcResponse(asked.id, result=Raw(await unless_gone(begun, request))))
        except ERRORS as error:  # the agent's code is the user's
            return _answer(_failed(error, asked.id, asked.method, has_begun=has_begun))
        return streamed(_events(begun, asked.id, asked.method), request)

    @router.get("/agent.json", summary="The agent's card")
    async def card(request: Request) -> Response:
        found = await agent_card(agent, str(request.url_for("call")))
        return Response(msgspec.json.encode(found), media_type="application/json")

    return router


def _answer(response: RpcResponse) -> Response:
    return Response(encode(response), media_type="application/json")


def _failed(error: BaseException, request: Any, method: str, *, has_begun: bool) -> RpcResponse:
    """The answer to a request whose handler raised."""
    detail = describe(error, method, has_begun=has_begun)
    log.info("%s() raised %s", method, detail.message)
    return RpcResponse(request, error=detail)


async def _events(
    items: AsyncGenerator[bytes, None], request: Any, method: str
) -> AsyncGenerator[bytes, None]:
    """Each item as a response, and an error as the last of them."""
    async with aclosing(items):
        try:
            async for item in items:
                yield event(encode(RpcResponse(request, result=Raw(item))))
        except ERRORS as error:
            yield event(encode(_failed(error, request, method, has_begun=True)))


async def agent_card(agent: Any, url: str) -> dict[str, Any]:
    """What an agent says of itself, in the form of the A2A protocol.

    Args:
        agent: If it has `get_agent_card()`, that decides.
        url: Where it can be called.
    """
    given = getattr(agent, "get_agent_card", None)
    if given is not None:
        found: Any = await outcome(given())
        return found.model_dump(by_alias=True) if isinstance(found, BaseModel) else dict(found)
    methods = {
        name: getattr(type(agent), operation.attribute)
        for name, operation in sorted(operations_of(type(agent)).items())
    }
    return {
        "name": agent.name,
        "description": _docs_of(type(agent)),
        "url": url,
        "version": "1",
        "capabilities": {"streaming": True, "pushNotifications": False},
        "defaultInputModes": ["application/json"],
        "defaultOutputModes": ["application/json"],
        "skills": [
            {"id": name, "name": name, "description": _docs_of(method)}
            for name, method in methods.items()
        ],
    }


def _docs_of(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
