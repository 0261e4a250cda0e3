"""A remote agent: `await remote.op(...)` for a result, `async for item in remote.op(...)`."""

from __future__ import annotations

import math
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import partial
from typing import Any

from msgspec import Raw

from strongroom.agents.tasks import NAMES as TASK_METHODS
from strongroom.errors import ProtocolError
from strongroom.messaging.arguments import pack
from strongroom.messaging.calls import TIMEOUT_SECONDS
from strongroom.messaging.operations import operations_of
from strongroom.messaging.rpc import Target
from strongroom.messaging.values import Codec, Unfit, listed
from strongroom.nodes.fabric import Fabric

Arguments = tuple[Target, str, bytes, float]

_ANYTHING = Codec(Any)


class Remote:
    """The agent at a target. Every attribute that begins with a letter is an operation.

    But for those of `TaskCalls`, which start, watch and cancel tasks.

    >>> remote = Agent.remote_by_address("storage@fame.fabric")
    >>> await remote.store_value("key", "value")
    >>> await remote.retrieve_value("key", _timeout=5)
    >>> remote
    <remote Agent: storage@fame.fabric>

    Args:
        target: The address or the capabilities to call.
        cls: The agent's class. Of its operations we know names, types, and which are streams;
            any others are called by the attribute's name and give plain JSON values.
        fabric: The fabric to call from, if not the current one.
        timeout: Seconds to wait for each result, and for each item of a stream.
    """

    def __init__(
        self,
        target: Target,
        cls: type[Any],
        *,
        fabric: Fabric | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        operations = operations_of(cls)
        by_attribute = {operation.attribute: operation for operation in operations.values()}
        self._target = target
        self._class_name = cls.__name__
        self._operations = {**operations, **by_attribute}
        self._fabric = fabric or Fabric.current()
        self._timeout = _seconds(timeout)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in TASK_METHODS and name not in self._operations:
            from strongroom.agents.task_calls import TaskCalls  # noqa: PLC0415 - loads A2A

            method: Callable[..., Any] = getattr(
                TaskCalls(self._fabric, self._target, self._timeout), name
            )
            return method
        return partial(self._call, name)

    def _call(
        self,
        attribute: str,
        /,
        *args: Any,
        _stream: bool = False,
        _timeout: float | None = None,
        **kwargs: Any,
    ) -> Call:
        known = self._operations.get(attribute)
        name = known.name if known else attribute
        timeout = self._timeout if _timeout is None else _seconds(_timeout)
        is_stream = _stream or (known is not None and known.streaming)
        params = known.parameters.pack(args, kwargs) if known else pack(name, args, kwargs)
        result = known.result if known else _ANYTHING
        return Call(
            self._fabric, (self._target, name, params, timeout), result, is_stream=is_stream
        )

    def __repr__(self) -> str:
        return f"<remote {self._class_name}: {self._target}>"


def _seconds(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout):
        raise TypeError(f"A timeout is a number of seconds, not {timeout!r}")
    return timeout


class Call(Coroutine[Any, Any, Any], AsyncGenerator[Any, None]):
    """One call, sent when it is first awaited (for one result) or iterated (for a stream).

    It is a coroutine, so that `asyncio.create_task` takes it, and an async generator, so that
    `anext` and `contextlib.aclosing` do, as they take what the operation itself returns.
    """

    def __init__(
        self,
        fabric: Fabric,
        arguments: Arguments,
        result: Codec,
        *,
        is_stream: bool,
    ) -> None:
        self._fabric = fabric
        self._arguments = arguments
        self._codec = result
        self._is_stream = is_stream
        self._awaited: Coroutine[Any, Any, Any] | None = None
        self._iterated: AsyncGenerator[Any, None] | None = None
        self._is_closed = is_stream

    def __del__(self) -> None:
        if not (self._is_closed or self._awaited or self._iterated):
            target, name, *_ = self._arguments
            warnings.warn(
                f"{name}() of {target} was never awaited, so it was not called",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    async def _result(self) -> Any:
        if self._is_stream:
            return self.__aiter__()
        value = await self._fabric.calls.call(*self._arguments)
        return None if value is None else _read(self._codec, value, self._arguments)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine().__await__()

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        if self._iterated is None:
            # Of a function, not a method: a loop that is left drops us, and with us the generator,
            # at once only if that does not hold us in turn.
            self._iterated = _items(self._fabric, self._arguments, self._codec)
        return self._iterated

    def _coroutine(self) -> Coroutine[Any, Any, Any]:
        if self._awaited is None:
            self._awaited = self._result()
        return self._awaited

    def send(self, value: Any, /) -> Any:
        """(Coroutine) Resume."""
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        """(Coroutine) Resume with an error."""
        return self._coroutine().throw(*error)

    def close(self) -> None:
        """(Coroutine) Give up."""
        self._is_closed = True
        if self._awaited is not None:
            self._awaited.close()

    async def asend(self, value: None, /) -> Any:
        """(Async generator) Read the next item."""
        return await self.__aiter__().asend(value)

    async def athrow(self, *error: Any) -> Any:
        """(Async generator) Resume with an error."""
        return await self.__aiter__().athrow(*error)

    async def aclose(self) -> None:
        """(Async generator) Leave the stream; the agent stops producing it."""
        if self._iterated is not None:
            await self._iterated.aclose()


async def _items(fabric: Fabric, arguments: Arguments, codec: Codec) -> AsyncGenerator[Any, None]:
    items = fabric.calls.stream(*arguments)
    try:
        async for item in items:
            yield _read(codec, item, arguments)
    finally:
        await items.aclose()


def _read(codec: Codec, value: Raw, arguments: Arguments) -> Any:
    try:
        return codec.read(value)
    except Unfit as error:
        target, name, *_ = arguments
        raise ProtocolError(
            f"What {name}() of {target} returned does not fit its annotation here: "
            f"{listed(error.problems)}.",
            remedy="the same version of the agent's class on both sides",
        ) from None
