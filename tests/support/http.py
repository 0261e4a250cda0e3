"""A client for tests of what answers HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class HttpClient:
    """Sends requests, each on a connection of its own."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self.port = port
        self._headers = headers

    async def get(self, path: str, **headers: str) -> Answer:
        return await asyncio.to_thread(self.request, "GET", path, None, headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await asyncio.to_thread(self.request, "POST", path, data, headers)

    def request(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, data, self._headers | headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()
