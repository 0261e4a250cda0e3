"""Operations: methods of an agent that others may call, their arguments checked by annotations."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from msgspec import Raw

from strongroom.errors import StrongroomError, UnknownOperation
from strongroom.messaging.arguments import Parameters
from strongroom.messaging.methods import MARK, Method, marked_methods
from strongroom.messaging.values import Unfit, listed

# --- what type checkers see; at run time a decorated method stays the function that it was ------

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Coroutine[Any, Any, Any] | AsyncIterable[Any])
R_co = TypeVar("R_co", covariant=True)


class BoundOperation(Protocol[P, R_co]):
    """An operation of one agent. Its arguments are not checked in a call with `_timeout`."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Any, _timeout: float, **kwargs: Any) -> R_co: ...


class OperationMethod(Protocol[P, R_co]):
    """An operation as an attribute of its class."""

    @overload
    def __get__(self, agent: None, owner: type[Any], /) -> Callable[Concatenate[Any, P], R_co]: ...
    @overload
    def __get__(
        self, agent: object, owner: type[Any] | None = None, /
    ) -> BoundOperation[P, R_co]: ...


class Decorator(Protocol):
    """What `operation(name=...)` returns."""

    # The overloads overlap, since T can be a coroutine too; the first one that fits counts.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, method: Callable[Concatenate[Any, P], R], /
    ) -> OperationMethod[P, R]: ...
    @overload
    def __call__(
        self, method: Callable[Concatenate[Any, P], T], /
    ) -> OperationMethod[P, Coroutine[Any, Any, T]]: ...


@overload
def operation(  # type: ignore[overload-overlap]
    method: Callable[Concatenate[Any, P], R], /
) -> OperationMethod[P, R]: ...
@overload
def operation(
    method: Callable[Concatenate[Any, P], T], /
) -> OperationMethod[P, Coroutine[Any, Any, T]]: ...
@overload
def operation(*, name: str | None = None, streaming: bool = False) -> Decorator: ...
def operation(
    method: Callable[..., Any] | None = None, *, name: str | None = None, streaming: bool = False
) -> Any:
    """Let others call a method of an agent, by its name and with its parameters.

    >>> class Calculator(BaseAgent):
    ...     @operation
    ...     async def add(self, a: int, b: int) -> int:
    ...         return a + b
    ...
    ...     @operation(streaming=True)
    ...     async def count(self, end: int) -> AsyncIterator[int]:
    ...         for number in range(end):
    ...             yield number

    A plain `def` operation runs on a thread, so that it may block; it cannot use the event loop.
    To type checkers it returns something to await, because on a remote it does. On the agent itself
    it stays the function that you wrote, so write an operation that the agent itself calls as
    `async def`.

    Args:
        method: The method, where the decorator is used without parentheses.
        name: The name that callers use, if it is not the method's own.
        streaming: The method returns an async iterator, whose items callers get one by one. An
            `async def` with `yield` needs no such flag.
    """

    def mark(function: Any) -> Any:
        if isinstance(function, property):
            raise TypeError("@operation marks methods, and this is a property")
        setattr(function, MARK, (name or function.__name__, streaming))
        return function

    return mark if method is None else mark(method)


# --- running them -------------------------------------------------------------------------------


class Operation:
    """One operation of a class of agents: how its arguments are read and its results written.

    Args:
        cls: The class of the agents.
        attribute: The method's name.
        name: The name that callers use.
        streaming: The method is marked as streaming.

    Raises:
        StrongroomError: The operation cannot be served; says which annotation is wrong.
    """

    def __init__(self, cls: type[Any], attribute: str, name: str, *, streaming: bool) -> None:
        method = Method(cls, attribute)
        self.name = name
        self.attribute = attribute
        self.streaming = streaming or method.is_async_generator
        self._blocks = method.blocks
        codecs = {
            name: method.codec(f"parameter {name!r}", annotation)
            for name, annotation in method.annotations.items()
        }
        self.parameters = Parameters(name, method.signature, codecs)
        self.result = method.codec("result", method.result_type(streaming=self.streaming))

    def start(self, agent: object, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin the operation on `agent` with arguments from the wire.

        Raises:
            InvalidArguments: They do not fit the method.
        """
        args, kwargs = self.parameters.read(params)
        run = partial(getattr(agent, self.attribute), *args, **kwargs)
        return self._items(run) if self.streaming else self._result(run)

    async def _result(self, run: Callable[[], Any]) -> bytes:
        outcome = await _on_thread(run) if self._blocks else run()
        return self._write(await outcome if inspect.isawaitable(outcome) else outcome, "returned")

    async def _items(self, run: Callable[[], Any]) -> AsyncGenerator[bytes, None]:
        items = await _on_thread(run) if self._blocks else run()
        if not isinstance(items, AsyncIterable) and inspect.isawaitable(items):
            items = await items
        if not isinstance(items, AsyncIterable):
            kind = type(items).__name__
            raise TypeError(f"{self.name}() returned a {kind}, which is not an async iterator")
        try:
            async for item in items:
                yield self._write(item, "yielded")
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    def _write(self, value: Any, verb: str) -> bytes:
        try:
            return self.result.write(value)
        except Unfit as error:
            raise TypeError(
                f"{self.name}() {verb} a {type(value).__name__} that its annotation does not allow "
                f"or that would not arrive as it is: {listed(error.problems)}"
            ) from None


async def _on_thread(run: Callable[[], Any]) -> Any:
    value, error = await asyncio.to_thread(_outcome, run)
    if error is not None:
        raise error
    return value


def _outcome(run: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return run(), None
    except BaseException as error:  # noqa: BLE001 - a future cannot hold some, as StopIteration
        return None, error


_known: dict[type[Any], dict[str, Operation]] = {}


def operations_of(cls: type[Any]) -> dict[str, Operation]:
    """The operations of a class, by the names that callers use.

    Raises:
        StrongroomError: One of them cannot be served.
    """
    if cls not in _known:
        found: dict[str, Operation] = {}
        for attribute, (name, streaming) in marked_methods(cls).items():
            operation = Operation(cls, attribute, name, streaming=streaming)
            other = found.setdefault(name, operation)
            if other is not operation:
                raise StrongroomError(
                    f"{cls.__name__} has two operations named {name!r}: {other.attribute}() and "
                    f"{attribute}().",
                    remedy="another @operation(name=...) for one of them",
                )
        _known[cls] = found
    return _known[cls]


def function_as_operation(function: Callable[..., Any]) -> tuple[type[Any], dict[str, Operation]]:
    """A class whose one operation is `function`, and that operation by the name that callers use.

    Raises:
        StrongroomError: It cannot be served.
    """
    attribute = function.__name__
    name, streaming = getattr(function, MARK, (attribute, False))
    holder = type(attribute, (), {attribute: staticmethod(function)})
    return holder, {name: Operation(holder, attribute, name, streaming=streaming)}


def find_operation(operations: dict[str, Operation], method: str, owner: str) -> Operation:
    """The operation that callers name `method`.

    Raises:
        UnknownOperation: `owner` has none.
    """
    if method not in operations:
        raise UnknownOperation(f"Method not found: {owner} has no operation {method[:200]!r}.")
    return operations[method]


async def outcome(value: Any) -> Any:
    """What a user's function returned, whether it is `async def` or not."""
    return await value if inspect.isawaitable(value) else value
