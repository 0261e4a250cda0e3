"""A remote agent, as its caller holds it: `await r.op(...)` or `async for item in r.op(...)`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw
from pydantic import TypeAdapter

from strongroom.agents.operations import Operation, pack
from strongroom.messaging.calls import TIMEOUT_SECONDS
from strongroom.messaging.rpc import Target
from strongroom.nodes.fabric import Fabric

Reader = Callable[[Raw], Any]


class Remote:
    """Whoever answers at a target. Every public attribute is an operation of it.

    >>> remote = Agent.remote_by_address("storage@fame.fabric")
    >>> await remote.store_value("key", "value")
    """

    def __init__(
        self,
        target: Target,
        operations: Mapping[str, Operation],
        *,
        fabric: Fabric | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._target = target
        self._operations = operations
        self._fabric = fabric or Fabric.current()
        self._timeout = timeout

    def __getattr__(self, name: str) -> Callable[..., Call]:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._call, name)

    def _call(
        self,
        method: str,
        /,
        *args: Any,
        _stream: bool = False,
        _timeout: float | None = None,
        **kwargs: Any,
    ) -> Call:
        arguments = (self._target, method, pack(args, kwargs), _timeout or self._timeout)
        return Call(self._fabric, arguments, self._reader(method), is_stream=_stream)

    def _reader(self, method: str) -> Reader:
        known = self._operations.get(method)
        if known is None or known.result_type in {Any, None}:
            return msgspec.json.decode
        adapter: TypeAdapter[Any] = TypeAdapter(known.result_type)
        return lambda value: adapter.validate_json(bytes(value))

    def __repr__(self) -> str:
        return f"<remote {self._target}>"


class Call(Coroutine[Any, Any, Any]):
    """One call, sent when it is awaited (one result) or iterated (a stream)."""

    def __init__(
        self,
        fabric: Fabric,
        arguments: tuple[Target, str, bytes, float],
        read: Reader,
        *,
        is_stream: bool,
    ) -> None:
        self._fabric = fabric
        self._arguments = arguments
        self._read = read
        self._is_stream = is_stream
        self._started: Coroutine[Any, Any, Any] | None = None

    async def _result(self) -> Any:
        if self._is_stream:
            return self._items()
        value = await self._fabric.calls.call(*self._arguments)
        return None if value is None else self._read(value)

    async def _items(self) -> AsyncGenerator[Any, None]:
        items = self._fabric.calls.stream(*self._arguments)
        try:
            async for item in items:
                yield self._read(item)
        finally:
            await items.aclose()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._result().__await__()

    # A coroutine, so that asyncio.create_task takes a call as it takes an `async def`'s.

    def send(self, value: Any, /) -> Any:
        """(Coroutine) Go on."""
        if self._started is None:
            self._started = self._result()
        return self._started.send(value)

    def throw(self, *error: Any) -> Any:
        """(Coroutine) Go on with an error."""
        if self._started is None:
            self._started = self._result()
        return self._started.throw(*error)

    def close(self) -> None:
        """(Coroutine) Give up."""
        if self._started is not None:
            self._started.close()
