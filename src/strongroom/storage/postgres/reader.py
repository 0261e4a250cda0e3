"""Single reads. What is asked for while a read is under way gathers, and goes in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from strongroom.background import BackgroundTasks
from strongroom.storage.postgres.connections import Connections
from strongroom.storage.records import Clock, Record

GATHERED = 512  # callers

_Waiting = tuple[Sequence[str], asyncio.Future[list[Record | None]]]


class Reader:
    """Reads records of one namespace by key."""

    def __init__(self, connections: Connections, space: str, namespace: int, clock: Clock) -> None:
        self._connections = connections
        self._statement = (
            "SELECT key, value, revision, created, updated, expires "
            f'FROM "{space}".record WHERE ns = $1 AND key = ANY($2)'
        )
        self._namespace = namespace
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        self._waiting: list[_Waiting] = []
        self._tasks = BackgroundTasks("records were not read")

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        """The records of `keys`, in their order. A read that comes alone does not wait."""
        if not self._under_way:
            self._under_way += 1
            try:
                found = await self._fetch(keys)
            finally:
                self._under_way -= 1
            return [found.get(key) for key in keys]
        future: asyncio.Future[list[Record | None]] = self._loop.create_future()
        self._waiting.append((keys, future))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._send)
        elif len(self._waiting) == GATHERED:
            self._send()
        return await future

    def _send(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._tasks.start(self._read_together(waiting))

    async def _read_together(self, waiting: list[_Waiting]) -> None:
        self._under_way += 1
        error: Exception | None = None
        found: dict[str, Record] = {}
        try:
            found = await self._fetch(list({key for keys, _ in waiting for key in keys}))
        except Exception as failure:  # noqa: BLE001  # whatever it is, the callers wait for it
            error = failure
        finally:
            self._under_way -= 1
        for keys, future in waiting:
            if future.done():
                continue  # cancelled
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result([found.get(key) for key in keys])

    async def _fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        encoded = [key.encode() for key in keys]
        rows: list[Any] = await self._connections.fetch(self._statement, self._namespace, encoded)
        now = self._clock()
        records = [record_of(row) for row in rows]
        return {
            record.key: record
            for record in records
            if record.expires is None or record.expires > now
        }


def record_of(row: Any) -> Record:
    """A row with the columns key, value, revision, created, updated and expires as a record."""
    key, value, revision, created, updated, expires = row
    return Record(key.decode(), value, revision, created, updated, expires)
