"""Whether a value that was read back is the value that was stored."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

SECRETS = (Secret, SecretBytes, SecretStr)
_MISSING = object()
_LEAVES = frozenset({str, int, bool, bytes, date, timedelta, UUID, type(None)})
"""Types of which equal values are the same; the rest is slower."""


def difference(given: Any, read: Any) -> str | None:  # noqa: PLR0911  # one for each kind
    """The field in which two values differ, "" for the values themselves; None if nowhere.

    Equality is too weak: `1 == True == 1.0`, `0.0 == -0.0`, and an instance of a subclass may
    equal one of its base. Dictionary keys are data, so they are not part of the field's name.
    """
    if type(given) is not type(read):
        return ""
    if type(given) in _LEAVES:
        return None if given == read else ""
    if type(given) is datetime or type(given) is float:
        return None if _same(given, read) else ""
    if isinstance(given, BaseModel):
        if _has_only_fields(given) and _has_only_fields(read):
            return _first(vars(given), vars(read))
        return _first(_parts(given), _parts(read))
    if dataclasses.is_dataclass(given):
        names = [field.name for field in dataclasses.fields(given)]
        return _first(_attributes(given, names), _attributes(read, names))
    if isinstance(given, dict):
        return difference([*given, *given.values()], [*read, *read.values()])
    if isinstance(given, list | tuple | deque):
        if len(given) != len(read):
            return ""
        found = (difference(*pair) for pair in zip(given, read, strict=True))
        return next((field for field in found if field is not None), None)
    return None if _same(given, read) else ""


def _same(given: Any, read: Any) -> bool:  # noqa: PLR0911  # one for each kind
    match given:
        case float() if given == read and given:
            return True
        case float():
            if math.isnan(given):
                return math.isnan(read)
            return bool(given == read) and math.copysign(1, given) == math.copysign(1, read)
        case datetime() | time():  # reading makes a fixed offset of a zone
            return bool(given == read) and given.utcoffset() == read.utcoffset()
        case Enum():
            return given is read
        case Decimal():
            return bool(given.as_tuple() == read.as_tuple())
        case set() | frozenset():
            return {(type(item), item) for item in given} == {(type(item), item) for item in read}
        case Secret() | SecretBytes() | SecretStr():
            return difference(given.get_secret_value(), read.get_secret_value()) is None
    compares: Any = type(given).__eq__
    if compares is object.__eq__ and hasattr(given, "__dict__"):
        return difference(vars(given), vars(read)) is None
    return bool(given == read)


def _has_only_fields(model: BaseModel) -> bool:
    is_plain = not (model.__pydantic_private__ or model.__pydantic_extra__)
    return is_plain and vars(model).keys() == type(model).__pydantic_fields__.keys()


def _parts(model: BaseModel) -> dict[str, Any]:
    """What a model consists of: its fields, extra fields and private attributes."""
    fields = {name: vars(model).get(name, _MISSING) for name in type(model).model_fields}
    return {
        **fields,
        **(model.__pydantic_private__ or {}),
        "extra fields": model.__pydantic_extra__,
    }


def _attributes(value: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(value, name, _MISSING) for name in names}


def _first(given: dict[str, Any], read: dict[str, Any]) -> str | None:
    for name, part in given.items():
        other = read.get(name, _MISSING)
        if type(part) is type(other) and type(part) in _LEAVES and part == other:
            continue  # most fields, without a call
        inner = difference(part, other)
        if inner is not None:
            return f"{name}.{inner}".rstrip(".")
    return None


def has_secret(value: Any) -> bool:
    """Whether a secret of Pydantic is somewhere in `value`."""
    if type(value) in _LEAVES:
        return False
    if isinstance(value, SECRETS):
        return True
    if isinstance(value, BaseModel):
        return any(map(has_secret, vars(value).values())) or has_secret(value.__pydantic_extra__)
    if dataclasses.is_dataclass(value):
        return any(has_secret(getattr(value, f.name, None)) for f in dataclasses.fields(value))
    if isinstance(value, dict):
        return any(map(has_secret, value.values()))
    return isinstance(value, list | tuple | set | frozenset | deque) and any(map(has_secret, value))


def revealed(value: Any, data: Any) -> Any:
    """`data`, the JSON of `value`, with each secret in place of its asterisks."""
    if isinstance(value, SECRETS):
        return to_jsonable_python(value.get_secret_value())
    if isinstance(data, dict):
        if isinstance(value, BaseModel):
            parts = {**vars(value), **(value.__pydantic_extra__ or {})}
        elif dataclasses.is_dataclass(value):
            parts = _attributes(value, [field.name for field in dataclasses.fields(value)])
        elif isinstance(value, dict) and len(value) == len(data):
            parts = dict(zip(data, value.values(), strict=True))
        else:
            return data
        return {name: revealed(parts.get(name), item) for name, item in data.items()}
    if isinstance(value, BaseModel):
        return revealed(vars(value).get("root"), data)
    if isinstance(data, list) and isinstance(value, list | tuple | set | frozenset | deque):
        return [revealed(*pair) for pair in zip(value, data, strict=False)]
    return data
