"""Who may use the gateway: the same as may attach to a sentinel."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strongroom.admission.door import (
    admits_all,
    has_token,
    is_own_process,
    refusal_of_request,
)
from strongroom.settings import Settings


class Door:
    """ASGI middleware that lets in who has the token; without one, processes of this user."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """(ASGI) Pass a request on, or refuse it."""
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        refusal = self._refusal(scope) if scope["type"] == "http" else None
        try:
            await (self._app if refusal is None else refusal)(scope, receive, begin)
        except asyncio.CancelledError:  # by the server, when the node stops
            if not has_begun:
                status = HTTPStatus.SERVICE_UNAVAILABLE
                await refused(status, "The node has stopped.")(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        status = refusal_of_request(headers, self._settings)
        if status is not None:
            return refused(status, f"{status.phrase}: neither this origin nor this host is known.")
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if not has_token(token.strip() if scheme.lower() == "bearer" else None, self._settings):
            response = refused(HTTPStatus.UNAUTHORIZED, "The token is missing or wrong.")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if not (admits_all(self._settings) or is_own_process(scope["client"], scope["server"])):
            what = "Processes of other users need FAME_ADMISSION_TOKEN."
            return refused(HTTPStatus.FORBIDDEN, what)
        return None


def refused(status: HTTPStatus, what: str) -> Response:
    """The answer to a request that does not reach an agent."""
    body = msgspec.json.encode({"ok": False, "error": what})
    return Response(body, status, media_type="application/json")
