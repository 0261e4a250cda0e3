"""Operations: methods of an agent that others may call, their arguments checked by annotations."""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
)
from functools import partial
from typing import (
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import msgspec
from msgspec import UNSET, Raw, UnsetType
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from strongroom.errors import InvalidArguments

_MARK = "__strongroom_operation__"

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

    To type checkers a plain `def` operation returns something to await, because on a remote it
    does. On the agent itself it stays the function that you wrote, so write an operation that the
    agent itself calls as `async def`.

    Args:
        method: The method, where the decorator is used without parentheses.
        name: The name that callers use, if it is not the method's own.
        streaming: The method returns an async iterator, whose items callers get one by one. An
            `async def` with `yield` needs no such flag.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _MARK, (name or function.__name__, streaming))
        return function

    return mark if method is None else mark(method)


# --- running them -------------------------------------------------------------------------------


class _Packed(msgspec.Struct):
    args: list[Raw] | UnsetType | None = UNSET
    kwargs: dict[str, Raw] | UnsetType | None = UNSET


_read_packed = msgspec.json.Decoder(_Packed).decode


class Operation:
    """One operation of a class of agents: how its arguments are read and its results written."""

    def __init__(
        self, name: str, attribute: str, function: Callable[..., Any], *, streaming: bool
    ) -> None:
        self.name = name
        self.attribute = attribute
        self.streaming = streaming or inspect.isasyncgenfunction(function)
        hints = _type_hints(function)
        self._signature = _without_self(inspect.signature(function))
        self._readers = {name: _reader(hints.get(name, Any)) for name in self._signature.parameters}
        is_plain = all(
            parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            for parameter in self._signature.parameters.values()
        )
        self._plain = list(self._readers) if is_plain else []
        self.result_type = _item_type(hints.get("return", Any), streaming=self.streaming)

    def start(self, agent: object, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin the operation on `agent` with arguments from the wire.

        Raises:
            InvalidArguments: They do not fit the method.
        """
        args, kwargs = self._read(params)
        run = partial(getattr(agent, self.attribute), *args, **kwargs)
        return _write_items(run) if self.streaming else _write_result(run)

    def _read(self, params: Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = unpack(params)
        problems: list[dict[str, Any]] = []
        if not kwargs and len(args) == len(self._plain):
            read = [
                self._read_one(name, None, value, problems)
                for name, value in zip(self._plain, args, strict=True)
            ]
            _raise_if(problems, self.attribute)
            return tuple(read), {}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"{self.attribute}(): {error}.") from None
        for name, value in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            bound.arguments[name] = self._read_one(name, kind, value, problems)
        _raise_if(problems, self.attribute)
        return bound.args, bound.kwargs

    def _read_one(self, name: str, kind: Any, value: Any, problems: list[dict[str, Any]]) -> Any:
        read = self._readers[name]
        try:
            if kind is inspect.Parameter.VAR_POSITIONAL:
                return tuple(read(part) for part in value)
            if kind is inspect.Parameter.VAR_KEYWORD:
                return {key: read(part) for key, part in value.items()}
            return read(value)
        except ValidationError as error:
            problems.extend(
                {"loc": [name, *problem["loc"]], "msg": problem["msg"], "type": problem["type"]}
                for problem in error.errors(include_url=False, include_context=False)
            )
            return None


def _raise_if(problems: list[dict[str, Any]], name: str) -> None:
    if problems:
        text = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in problems)
        raise InvalidArguments(f"{name}(): {text}.", data=problems)


_known: dict[type[Any], dict[str, Operation]] = {}


def operations_of(cls: type[Any]) -> dict[str, Operation]:
    """The operations of a class, by the names that callers use."""
    if cls not in _known:
        _known[cls] = {operation.name: operation for operation in _marked_in(cls)}
    return _known[cls]


def _marked_in(cls: type[Any]) -> Iterator[Operation]:
    for attribute in dir(cls):
        function = getattr(cls, attribute, None)
        mark = getattr(function, _MARK, None)
        if mark is not None and callable(function):
            name, streaming = mark
            yield Operation(name, attribute, function, streaming=streaming)


def unpack(params: Raw) -> tuple[list[Raw], dict[str, Raw]]:
    """Positional and keyword arguments, from all the forms in which peers send them.

    Raises:
        InvalidArguments: `params` has none of these forms.
    """
    try:
        packed = _read_packed(params)
        if packed.args is not UNSET or packed.kwargs is not UNSET:
            return packed.args or [], packed.kwargs or {}
        return [], msgspec.json.decode(params, type=dict[str, Raw])
    except (msgspec.MsgspecError, RecursionError) as error:
        if bytes(params).lstrip().startswith(b"["):
            return msgspec.json.decode(params, type=list[Raw]), {}
        raise InvalidArguments(f"The arguments cannot be read: {error}") from None


def pack(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments of a call, as peers expect them."""
    return to_json({"args": args, "kwargs": kwargs})


def to_json(value: Any) -> bytes:
    """Any value, Pydantic models included, as JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump_json(by_alias=True).encode()
    return _encode(value)


def _enc_hook(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return Raw(value.model_dump_json(by_alias=True).encode())
    return to_jsonable_python(value, by_alias=True)


_encode = msgspec.json.Encoder(enc_hook=_enc_hook).encode


async def _write_result(run: Callable[[], Any]) -> bytes:
    outcome = run()
    return to_json(await outcome if inspect.isawaitable(outcome) else outcome)


async def _write_items(run: Callable[[], Any]) -> AsyncGenerator[bytes, None]:
    items = run()
    if not isinstance(items, AsyncIterable):
        items = await items
    try:
        async for item in items:
            yield to_json(item)
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        # An annotation names something imported only for type checkers: we do not check values.
        return {}


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _reader(annotation: Any) -> Callable[[Raw], Any]:
    if annotation is Any:
        return msgspec.json.decode
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    return lambda value: adapter.validate_json(bytes(value))


def _item_type(annotation: Any, *, streaming: bool) -> Any:
    if not streaming:
        return annotation
    is_iterator = get_origin(annotation) in {AsyncIterable, AsyncIterator, AsyncGenerator}
    return get_args(annotation)[0] if is_iterator else Any
