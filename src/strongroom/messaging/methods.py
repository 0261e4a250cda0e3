"""What a class says of its operations, and what of it cannot be served."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterable, Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from strongroom.errors import StrongroomError
from strongroom.messaging.values import Codec

MARK = "__strongroom_operation__"


def marked_methods(cls: type[Any]) -> dict[str, tuple[str, bool]]:
    """The operations among a class's methods, each with the mark that `@operation` left on it.

    A method that overrides an operation is one too, whether or not it is marked again.
    """
    found = {}
    for attribute in dir(cls):
        definitions = [each.__dict__[attribute] for each in cls.__mro__ if attribute in vars(each)]
        marks = [mark for each in definitions if (mark := _mark_of(each)) is not None]
        if marks and definitions[0] is not None:
            found[attribute] = marks[0]
    return found


def _mark_of(definition: Any) -> tuple[str, bool] | None:
    for each in (definition, getattr(definition, "__func__", None)):
        mark = getattr(each, MARK, None)
        if isinstance(mark, tuple):
            return mark
    return None


class Method:
    """A method of a class of agents, as it is called on an agent."""

    def __init__(self, cls: type[Any], attribute: str) -> None:
        self._cls = cls
        self._attribute = attribute
        definition = inspect.getattr_static(cls, attribute)
        function = getattr(definition, "__func__", definition)
        if not callable(function):
            raise self.unfit("", f"a {type(definition).__name__} is not a method", "a method")
        innermost = inspect.unwrap(function)
        both = (function, innermost)
        self.is_async_generator = inspect.isasyncgenfunction(function)
        self._is_generator = any(map(inspect.isgeneratorfunction, both))
        self.blocks = not any(
            inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in both
        )
        hints = {
            name: self._evaluated(name, annotation, innermost)
            for name, annotation in inspect.get_annotations(innermost).items()
        }
        self._returns = hints.get("return", Any)
        self.annotations: dict[str, Any] = {}
        self.signature = self._signature(
            function, hints, skip=0 if isinstance(definition, staticmethod) else 1
        )

    def _signature(
        self, function: Callable[..., Any], hints: dict[str, Any], *, skip: int
    ) -> inspect.Signature:
        parameters = list(inspect.signature(function).parameters.values())
        with_defaults = []
        for each in parameters[skip:]:
            annotation, default = hints.get(each.name, Any), each.default
            if isinstance(default, FieldInfo):
                annotation = Annotated[annotation, default]
            elif default is each.empty:
                default = _default_in(annotation) or default
            self.annotations[each.name] = annotation
            with_defaults.append(each.replace(default=default))
        try:
            return inspect.Signature(with_defaults)
        except ValueError as error:
            raise self.unfit("", str(error), "parameters with a default after the others") from None

    def codec(self, place: str, annotation: Any) -> Codec:
        """How values of an annotation are written and read."""
        try:
            return Codec(annotation)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise self.unfit(
                place,
                f"Pydantic cannot read the annotation {annotation!r}: {reason}",
                "an annotation of JSON types, Pydantic models or dataclasses",
            ) from error

    def result_type(self, *, streaming: bool) -> Any:
        """The type of the result, or of each item of a stream."""
        kind = get_origin(self._returns) or self._returns
        iterates = isinstance(kind, type) and issubclass(kind, AsyncIterable)
        if iterates and not streaming:
            raise self.unfit("result", "an async iterator", "@operation(streaming=True)")
        if not streaming:
            return self._returns
        if self._is_generator or not (iterates or self._returns is Any):
            raise self.unfit(
                "result",
                "not an async iterator, which streaming=True promises",
                "async def with yield, and -> AsyncIterator[...]",
            )
        items = get_args(self._returns)
        return items[0] if items and kind.__module__ in {"collections.abc", "typing"} else Any

    def unfit(self, place: str, what: str, remedy: str) -> StrongroomError:
        """The error for an operation that cannot be served."""
        where = f" {place}:" if place else ""
        name = f"{self._cls.__name__}.{self._attribute}()"
        return StrongroomError(f"{name} cannot be served:{where} {what}.", remedy=remedy)

    def _evaluated(self, name: str, annotation: Any, function: Callable[..., Any]) -> Any:
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        module = getattr(function, "__globals__", {})
        try:
            try:
                hints = get_type_hints(holder, module, include_extras=True)
            except NameError:  # it may be defined in the class
                hints = get_type_hints(holder, module, dict(vars(self._cls)), include_extras=True)
        except Exception as error:
            place = "result" if name == "return" else f"parameter {name!r}"
            raise self.unfit(
                place,
                f"the annotation {annotation!r} cannot be read: {error}",
                "define its type in the module, outside functions and `if TYPE_CHECKING`",
            ) from error
        return hints[name]


def _default_in(annotation: Any) -> FieldInfo | None:
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    fields = (each for each in metadata if isinstance(each, FieldInfo) and not each.is_required())
    return next(fields, None)
