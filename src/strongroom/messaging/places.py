"""Places: how many requests may run at a time, shared fairly by those who send them."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar

from strongroom.messaging.unit import Unit


class Places:
    """A number of places. A source may have as many as it leaves free for others.

    So one source alone gets half of them, two get a third each, and a new one always finds room.
    """

    def __init__(self, number: int) -> None:
        self.taken = 0
        self._number = number
        self._taken_by: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def has_room(self, source: str) -> bool:
        """Whether a place is free for `source`, and none of its requests waits for one."""
        return source not in self._waiting and self._is_free(source)

    def _is_free(self, source: str) -> bool:
        return self._taken_by.get(source, 0) < self._number - self.taken

    def take(self, source: str) -> None:
        """Take a place, even if none is free."""
        self.taken += 1
        self._taken_by[source] = self._taken_by.get(source, 0) + 1

    async def wait(self, source: str) -> None:
        """Take a place as soon as one is free. Those of one source get theirs in turn."""
        if self.has_room(source):
            self.take(source)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(source, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave(source)
            raise

    def leave(self, source: str) -> None:
        """Give a place back."""
        self.taken -= 1
        left = self._taken_by[source] - 1
        if left:
            self._taken_by[source] = left
        else:
            del self._taken_by[source]
        if self._waiting:
            for waiting in list(self._waiting):
                self._admit(waiting)

    def _admit(self, source: str) -> None:
        turns = self._waiting[source]
        while turns and (turns[0].done() or self._is_free(source)):
            turn = turns.popleft()
            if not turn.done():
                self.take(source)
                turn.set_result(None)
        if not turns:
            del self._waiting[source]


class Place:
    """The place of a request. While the request waits for a call of its own, others may have it."""

    __slots__ = ("_calls", "_places", "_source", "is_taken", "takes_unit", "trace_id", "unit")

    def __init__(
        self,
        places: Places,
        source: str,
        trace_id: str | None = None,
        *,
        takes_unit: bool = False,
    ) -> None:
        self.is_taken = False
        self.takes_unit = takes_unit
        """Whether the request still runs, and has one answer that a unit can be stored with."""
        self.trace_id = trace_id
        """The trace of the request, which what is sent meanwhile belongs to."""
        self.unit: Unit | None = None
        self._places = places
        self._source = source
        self._calls = 0

    def take_if_free(self) -> bool:
        """Take the place, if nobody waits for it and one is free."""
        self.is_taken = self._places.has_room(self._source)
        if self.is_taken:
            self._places.take(self._source)
        return self.is_taken

    async def wait(self) -> None:
        """Take the place as soon as one is free."""
        await self._places.wait(self._source)
        self.is_taken = True

    def leave(self) -> None:
        """The request has ended."""
        self.takes_unit = False
        if self.unit is not None:
            self.unit.end()
        if self.is_taken and not self._calls:
            self._places.leave(self._source)
        self.is_taken = False

    def __enter__(self) -> None:
        """Wait for a call that the request has made."""
        self._calls += 1
        if self._calls == 1 and self.is_taken:
            self._places.leave(self._source)

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        if self.is_taken and not self._calls:
            self._places.take(self._source)


class _NoPlace(Place):
    """What code has that runs for no request."""

    def __init__(self) -> None:
        super().__init__(Places(0), "")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


own_place: ContextVar[Place] = ContextVar("strongroom_place", default=_NoPlace())  # noqa: B039
"""The place of the request for which this code runs; `with own_place.get():` lends it to others."""
