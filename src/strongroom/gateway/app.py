"""What the gateway answers: a call, a stream of items, a plain message, its own description.

The paths and the fields are those of Naylence's gateway. A JSON value goes through as it is: the
gateway reads neither arguments nor results.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct, field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from strongroom.errors import (
    Busy,
    CallError,
    CallInterrupted,
    CallTimeout,
    InvalidAddress,
    InvalidArguments,
    MessageTooLarge,
    NoDataFound,
    NoRoute,
    ProtocolError,
    RateLimitExceeded,
    StrongroomError,
    Unauthorized,
    UnknownOperation,
)
from strongroom.gateway.answers import event, streamed, unless_gone
from strongroom.gateway.door import Door, refused
from strongroom.gateway.page import openapi, page
from strongroom.messaging.address import MAX_ADDRESS, Address
from strongroom.messaging.envelope import MAX_MESSAGE, Data, Envelope
from strongroom.messaging.rpc import Target
from strongroom.settings import GATEWAY_PATH

if TYPE_CHECKING:
    from strongroom.nodes.node import Node

BODY_SECONDS = 10.0
"""Seconds in which the body of a request must have arrived."""
MAX_TIMEOUT_MS = 120_000

STATUS: dict[type[StrongroomError], HTTPStatus] = {
    InvalidAddress: HTTPStatus.BAD_REQUEST,
    InvalidArguments: HTTPStatus.BAD_REQUEST,
    Unauthorized: HTTPStatus.FORBIDDEN,
    NoRoute: HTTPStatus.NOT_FOUND,
    UnknownOperation: HTTPStatus.NOT_FOUND,
    NoDataFound: HTTPStatus.NOT_FOUND,
    MessageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Busy: HTTPStatus.TOO_MANY_REQUESTS,
    RateLimitExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    ProtocolError: HTTPStatus.BAD_GATEWAY,
    CallInterrupted: HTTPStatus.BAD_GATEWAY,
    CallTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}
"""The answers to errors; any other is 500."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
R = TypeVar("R", bound="_Addressed")


class _Addressed(Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    target_addr: Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS)] | None = None
    capabilities: Annotated[list[Name], Meta(min_length=1, max_length=16)] | None = None


class RpcRequest(_Addressed):
    """The body of `POST /rpc`."""

    method: Name
    params: dict[str, Raw] = {}
    timeout_ms: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_MS)] = 30_000


class MessageRequest(_Addressed):
    """The body of `POST /messages`."""

    type: Name | None = None
    payload: Raw = field(default_factory=lambda: Raw(b"null"))


class Gateway:
    """Answers HTTP requests with what the agents of a fabric answer."""

    def __init__(self, node: Node) -> None:
        """Call and send from `node`."""
        self._node = node

    async def call(self, request: Request) -> Response:
        """`POST /rpc`: one call; a stream of server-sent events for whom accepts only those."""
        body = await _read(request, RpcRequest)
        target, params = _target(body), msgspec.json.encode(body.params)
        seconds = body.timeout_ms / 1000
        if "text/event-stream" not in request.headers.get("Accept", ""):
            call = self._node.calls.call(target, body.method, params, seconds)
            result = await unless_gone(call, request)
            return _json(b'{"ok":true,"result":' + (result or b"null") + b"}")
        items = self._node.calls.stream(target, body.method, params, seconds)
        try:
            # What goes wrong before the first item still has a status of its own.
            first = await unless_gone(anext(items, None), request)
        except BaseException:
            await items.aclose()
            raise
        return streamed(_events(items, first), request)

    async def send(self, request: Request) -> Response:
        """`POST /messages`: a plain message, `{"type": …, "payload": …}`."""
        body = await _read(request, MessageRequest)
        target = _target(body)
        message = msgspec.json.encode({"type": body.type, "payload": body.payload})
        envelope = Envelope(
            to=target.address,
            capabilities=list(target.capabilities) or None,
            frame=Data(payload=Raw(message)),
        )
        await self._node.send(envelope)
        return _json(b'{"status":"message_accepted"}', HTTPStatus.ACCEPTED)

    async def health(self, _request: Request) -> Response:
        """`GET /health`."""
        return _json(b'{"status":"healthy","listenerType":"AgentHttpGatewayListener"}')


def gateway_app(node: Node) -> Starlette:
    """The gateway as an ASGI application, which calls and sends from `node`."""
    gateway, settings = Gateway(node), node.settings
    described = openapi(RpcRequest, MessageRequest)

    async def describe(_request: Request) -> Response:
        return _json(msgspec.json.encode(described))

    async def show(_request: Request) -> Response:
        return HTMLResponse(page(described))

    return Starlette(
        routes=[
            Route(f"{GATEWAY_PATH}/rpc", gateway.call, methods=["POST"]),
            Route(f"{GATEWAY_PATH}/messages", gateway.send, methods=["POST"]),
            Route(f"{GATEWAY_PATH}/health", gateway.health, methods=["GET"]),
            Route("/openapi.json", describe, methods=["GET"]),
            Route("/", show, methods=["GET"]),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins or (),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            ),
            Middleware(Door, settings=settings),
        ],
        exception_handlers={
            StrongroomError: _on_error,
            HTTPException: _on_refusal,
            ClientDisconnect: _on_disconnect,
        },
    )


async def _read(request: Request, model: type[R]) -> R:
    """The body of a request.

    Raises:
        HTTPException: It is no such request, is too large, or did not arrive.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_MESSAGE:
                    what = f"The body of the request is larger than {MAX_MESSAGE} bytes."
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what)
        found = msgspec.json.decode(body.decode(), type=model)  # all of it has to be UTF-8
    except (TimeoutError, ClientDisconnect):
        late = "The body of the request did not arrive."
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, late) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        wrong = f"The body of the request is wrong: {error}."
        raise HTTPException(HTTPStatus.BAD_REQUEST, wrong) from None
    if (found.target_addr is None) == (found.capabilities is None):
        which = "The body of the request has to name either targetAddr or capabilities."
        raise HTTPException(HTTPStatus.BAD_REQUEST, which)
    return found


def _target(body: _Addressed) -> Target:
    if body.target_addr is not None:
        Address.parse(body.target_addr)
    return Target(body.target_addr, tuple(body.capabilities or ()))


async def _events(
    items: AsyncGenerator[Raw, None], item: Raw | None
) -> AsyncGenerator[bytes, None]:
    """Items as events; the last one is `end`, or `error` with what a call's answer would hold."""
    async with aclosing(items):
        try:
            while item is not None:
                yield event(bytes(item))
                item = await anext(items, None)
        except StrongroomError as error:
            yield event(_described(error), "error")
        else:
            yield event(b"{}", "end")


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=HTTPStatus.REQUEST_TIMEOUT)  # which nobody reads


async def _on_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(HTTPStatus(error.status_code), error.detail)


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StrongroomError)
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    response = _json(_described(error), status or HTTPStatus.INTERNAL_SERVER_ERROR)
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        response.headers["Retry-After"] = "1"
    return response


def _described(error: StrongroomError) -> bytes:
    about: dict[str, Any] = {"ok": False, "error": error.what, "type": type(error).__name__}
    if isinstance(error, CallError):
        about |= {"code": error.code, "data": error.data}
    if error.remedy is not None:
        about["remedy"] = error.remedy
    return msgspec.json.encode({key: value for key, value in about.items() if value is not None})


def _json(body: bytes, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(body, status, media_type="application/json")
