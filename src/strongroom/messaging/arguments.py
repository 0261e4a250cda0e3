"""The arguments of an operation: how a caller writes them, and how the agent reads them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType
from pydantic.fields import FieldInfo

from strongroom.errors import InvalidArguments
from strongroom.messaging.values import (
    MAX_COUNTED,
    MAX_PROBLEMS,
    Codec,
    Unfit,
    check_depth,
    listed,
    problem,
    within,
)

Problems = list[dict[str, Any]]


class _Packed(msgspec.Struct):
    args: list[Raw] | UnsetType | None = UNSET
    kwargs: dict[str, Raw] | UnsetType | None = UNSET


_ANYTHING = Codec(Any)
_read_packed = msgspec.json.Decoder(_Packed).decode
_read_list = msgspec.json.Decoder(list[Raw]).decode
_read_object = msgspec.json.Decoder(dict[str, Raw]).decode


class Parameters:
    """The parameters of one operation, by which its arguments are written and read.

    Args:
        name: The operation's name, for errors.
        signature: Its parameters, without the agent.
        codecs: How the values of each are written and read.
    """

    def __init__(
        self, name: str, signature: inspect.Signature, codecs: Mapping[str, Codec]
    ) -> None:
        self._name = name
        self._signature = signature
        self._codecs = codecs
        kinds = {name: each.kind for name, each in signature.parameters.items()}
        self._by_place = [
            name
            for name, kind in kinds.items()
            if kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        ]
        named = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        self._by_name = {name for name, kind in kinds.items() if kind in named}
        rest = {kind: name for name, kind in kinds.items()}
        self._more_by_place = rest.get(inspect.Parameter.VAR_POSITIONAL)
        self._more_by_name = rest.get(inspect.Parameter.VAR_KEYWORD)
        self._is_plain = set(kinds.values()) <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        self._defaults = {
            name: each.default
            for name, each in signature.parameters.items()
            if isinstance(each.default, FieldInfo)
        }

    # --- the agent's side ---

    def read(self, params: Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for the method, of those from the wire.

        Raises:
            InvalidArguments: They do not fit.
        """
        args, kwargs = unpack(params)
        problems: Problems = []
        if self._is_plain and not kwargs and len(args) == len(self._by_place):
            read = [
                self._read_one(name, value, problems)
                for name, value in zip(self._by_place, args, strict=True)
            ]
            _raise_if(problems, self._name)
            return tuple(read), {}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"{self._name}(): {error}.") from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = self._read_all(name, value, problems)
        for name, field in self._defaults.items():
            if name not in bound.arguments:
                bound.arguments[name] = _default(name, field, problems)
        _raise_if(problems, self._name)
        return bound.args, bound.kwargs

    def _read_all(self, name: str, value: Any, problems: Problems) -> Any:
        if name == self._more_by_place:
            return tuple(self._read_one(name, part, problems) for part in value)
        if name == self._more_by_name:
            return {key: self._read_one(name, part, problems) for key, part in value.items()}
        return self._read_one(name, value, problems)

    def _read_one(self, name: str, value: Any, problems: Problems) -> Any:
        if len(problems) >= MAX_COUNTED:
            return None  # the call is refused anyway
        try:
            check_depth(value)
            return self._codecs[name].read(value)
        except Unfit as error:
            problems.extend(within(name, error.problems))
            return None

    # --- the caller's side ---

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments of a call, as peers expect them.

        What the signature does not allow is left to the agent, which may run another version of
        the class.

        Raises:
            InvalidArguments: One of them would not arrive as it is.
        """
        problems: Problems = []
        more = self._more_by_name
        by_place = [
            self._write_one(self._name_of(place), value, problems)
            for place, value in enumerate(args)
        ]
        by_name = {
            key: self._write_one(key if key in self._by_name else more, value, problems)
            for key, value in kwargs.items()
        }
        _raise_if(problems, self._name)
        return _pack(by_place, by_name)

    def _name_of(self, place: int) -> str | None:
        return self._by_place[place] if place < len(self._by_place) else self._more_by_place

    def _write_one(self, name: str | None, value: Any, problems: Problems) -> Raw:
        return _write(
            _ANYTHING if name is None else self._codecs[name], name or "", value, problems
        )


def pack(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments of a call to `name`, of whose parameters nothing is known.

    Raises:
        InvalidArguments: One of them has a value that JSON does not have.
    """
    problems: Problems = []
    by_place = [_write(_ANYTHING, str(n), value, problems) for n, value in enumerate(args, 1)]
    by_name = {key: _write(_ANYTHING, key, value, problems) for key, value in kwargs.items()}
    _raise_if(problems, name)
    return _pack(by_place, by_name)


def unpack(params: Raw) -> tuple[list[Raw], dict[str, Raw]]:
    """Positional and keyword arguments, from all the forms in which peers send them.

    Raises:
        InvalidArguments: `params` has none of these forms.
    """
    try:
        if bytes(params).lstrip().startswith(b"["):
            return _read_list(params), {}
        packed = _read_packed(params)
        if packed.args is not UNSET or packed.kwargs is not UNSET:
            return packed.args or [], packed.kwargs or {}
        return [], _read_object(params)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidArguments(f"The arguments cannot be read: {error}") from None


_to_json = msgspec.json.Encoder().encode


def _pack(by_place: list[Raw], by_name: dict[str, Raw]) -> bytes:
    return _to_json({"args": by_place, "kwargs": by_name})


def _write(codec: Codec, name: str, value: Any, problems: Problems) -> Raw:
    try:
        return Raw(codec.write(value))
    except Unfit as error:
        problems.extend(within(name, error.problems))
        return Raw()


def _default(name: str, field: FieldInfo, problems: Problems) -> Any:
    if field.is_required():
        problems.append(problem((name,), "missing a required argument", "missing_argument"))
        return None
    return field.get_default(call_default_factory=True, validated_data={})


def _raise_if(problems: Problems, name: str) -> None:
    if problems:
        raise InvalidArguments(f"{name}(): {listed(problems)}.", data=problems[:MAX_PROBLEMS])
