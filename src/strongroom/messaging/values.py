"""How values cross the wire as JSON: what arrives equals what was sent, or is refused.

An annotation says what a place (a parameter, a result, an item of a stream) holds. A value is
written as JSON, read back by its annotation, and compared. Only values of the simplest types, which
JSON has too, are not read back. Where no annotation says more than `Any`, a value arrives as what
JSON makes of it: a tuple as a list, a date as a string. What JSON would change beyond that is
refused there: bytes, secrets, NaN and infinity, and keys that are not strings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import cache, partial
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import Raw
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError, to_jsonable_python
from pydantic_core import to_json as to_pydantic_json

from strongroom.messaging.depth import TOO_DEEP, is_too_deep

MAX_PROBLEMS = 20
"""How many problems of a value an error lists; it counts the others."""
MAX_COUNTED = 4000
"""Problems of a value beyond which none is listed, since each costs microseconds."""
MAX_TEXT = 200
"""Characters of one problem's text, and of each part of its place."""

Place = tuple[str | int, ...]

_SIMPLE = {str, int, bool, float, NoneType}
_SECRETS = (Secret, SecretStr, SecretBytes)
_BYTES = (bytes, bytearray, memoryview)
_REFUSALS = (ValueError, TypeError, PydanticSerializationError, RecursionError)
_BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Unfit(ValueError):
    """A value does not fit its place. `problems` has `loc`, `msg` and `type` of each problem."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__("; ".join(_sentence(problem) for problem in problems))
        self.problems = problems

    @classmethod
    def at(cls, place: Place, text: str, kind: str = "value_changed") -> Unfit:
        """One problem."""
        return cls([problem(place, text, kind)])


def problem(place: Sequence[str | int], text: str, kind: str) -> dict[str, Any]:
    """One problem of a value, cut to a size that fits into an answer."""
    loc = [part if isinstance(part, int) else _cut(part) for part in place[:MAX_PROBLEMS]]
    return {"loc": loc, "msg": _cut(text), "type": kind}


def within(name: str, problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The problems of a part, as those of the whole in which the part is `name`."""
    return [{**each, "loc": [name, *each["loc"]]} for each in problems]


def listed(problems: list[dict[str, Any]]) -> str:
    """The first few problems, in one sentence."""
    text = "; ".join(_sentence(each) for each in problems[:MAX_PROBLEMS])
    more = len(problems) - MAX_PROBLEMS
    return f"{text}; and {more} more" if more > 0 else text


def _sentence(each: dict[str, Any]) -> str:
    place = ".".join(map(str, each["loc"]))
    return f"{place}: {each['msg']}" if place else str(each["msg"])


def _cut(text: str) -> str:
    clean = str(text).encode(errors="backslashreplace").decode()
    return clean if len(clean) <= MAX_TEXT else f"{clean[: MAX_TEXT - 1]}…"


class Codec:
    """Writes and reads the values of one place.

    >>> codec = Codec(list[Note])
    >>> codec.read(codec.write([Note(text="Hello")]))
    [Note(text='Hello')]

    Args:
        annotation: The type of the place. Pydantic raises an error if it cannot read it.
    """

    def __init__(self, annotation: Any) -> None:
        self._adapter: TypeAdapter[Any] | None = None
        self._simple: set[Any] = _SIMPLE
        self._holds_anything = True
        if annotation is not Any and annotation is not object:
            self._adapter = _adapter(annotation)
            self._simple = _simple_types(annotation)
            self._holds_anything = _has_any(self._adapter.core_schema)

    def read(self, data: Raw | bytes) -> Any:
        """The value in `data`.

        Raises:
            Unfit: It does not fit the annotation.
        """
        try:
            if self._adapter is None:
                return msgspec.json.decode(data)
            return self._adapter.validator.validate_json(bytes(data), by_alias=True, by_name=True)
        except ValidationError as error:
            raise _unfit(error) from None
        except Exception as error:  # of a validator of the user's, or of a decoder
            raise Unfit.at((), f"{type(error).__name__}: {_text(error)}", "unreadable") from error

    def write(self, value: Any) -> bytes:
        """`value` as JSON that is read as an equal value.

        Raises:
            Unfit: The annotation does not allow it, or there is no such JSON.
        """
        kind = type(value)
        try:
            if kind in self._simple and (kind is not float or isfinite(value)):
                return _encode(value)
            if self._adapter is None:
                data = self._write_plain(_settled(value))
            else:
                data = self._write_checked(self._adapter, value)
        except Unfit:
            raise
        except ValidationError as error:
            raise _unfit(error) from None
        except RecursionError:
            raise Unfit.at((), TOO_DEEP, "too_deep") from None
        except Exception as error:  # of a validator or serialiser of the user's, or of an encoder
            raise Unfit.at((), f"{type(error).__name__}: {_text(error)}", "unwritable") from error
        check_depth(data)
        return data

    def _write_plain(self, value: Any) -> bytes:
        try:
            data: bytes = _encode_plain(value)
        except (ValueError, TypeError, RecursionError):
            _check_plain(value, ())  # which names the place
            raise
        if not _equal(value, msgspec.json.decode(data)):
            _check_plain(value, ())
        return data

    def _write_checked(self, adapter: TypeAdapter[Any], value: Any) -> bytes:
        sent = list(value) if isinstance(value, Iterator) else value
        meant = _settled(adapter.validator.validate_python(sent, by_alias=True, by_name=True))
        refusals = []
        for write in _WRITERS:
            try:
                data = write(adapter, sent)
                _read_raw(data)  # Pydantic can be set up to write what is not JSON
                arrived = _settled(self._read_back(data, meant))
                if not _equal(meant, arrived):  # which may be for a reason that does not matter
                    _compare(meant, arrived, (), anything=self._holds_anything)
            except _REFUSALS as error:
                refusals.append(error)
            else:
                return data
        named = [each for each in refusals if isinstance(each, Unfit) and each.problems[0]["loc"]]
        raise (named or refusals)[-1 if named else 0]

    def _read_back(self, data: bytes, meant: Any) -> Any:
        try:
            return self.read(data)
        except Unfit as error:
            for each in error.problems:
                part = _part(meant, each["loc"])
                if isinstance(part, float) and not isfinite(part):
                    each["msg"] = f"JSON has no {part}"
            raise Unfit(error.problems) from None


def check_depth(data: Raw | bytes) -> None:
    """Check JSON that arrives or is sent.

    Raises:
        Unfit: It is nested too deeply.
    """
    if is_too_deep(bytes(data)):
        raise Unfit.at((), TOO_DEEP, "too_deep")


def _part(value: Any, place: Sequence[str | int]) -> Any:
    try:
        for key in place:
            value = getattr(value, str(key)) if hasattr(value, str(key)) else value[key]
    except (LookupError, TypeError):
        return None
    return value


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_BASE64)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model or the like, which has a configuration of its own


def _simple_types(annotation: Any) -> set[Any]:
    is_union = get_origin(annotation) in {Union, UnionType}
    types = get_args(annotation) if is_union else (annotation,)
    is_simple = all(isinstance(each, type) and each in _SIMPLE for each in types)
    return set(types) if is_simple else set()


_HOLDERS = {"dict": "values_schema", "list": "items_schema", "set": "items_schema"}


def _has_any(schema: Any) -> bool:
    """Whether a value of this core schema has a place for which it says no type."""
    if isinstance(schema, Mapping):
        kind = schema.get("type")
        if not isinstance(kind, str):  # the fields of a model, one of which may be named "type"
            return any(map(_has_any, schema.values()))
        if kind == "any" or (kind in _HOLDERS and _HOLDERS[kind] not in schema):
            return True
        return any(_has_any(value) for key, value in schema.items() if key != "metadata")
    return isinstance(schema, list | tuple) and any(_has_any(each) for each in schema)


# --- writing ------------------------------------------------------------------------------------


def _as_ever(_adapter: TypeAdapter[Any], value: Any) -> bytes:
    return _encode(value)


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return Raw(value.model_dump_json(by_alias=True, warnings=False).encode())
    return to_jsonable_python(value, by_alias=True)


def _written(value: Any) -> Any:
    if isinstance(value, Iterator):
        raise TypeError("what can be read only once is not sent within another value")
    if isinstance(value, BaseModel):
        return Raw(_codec_of(type(value)).write(value))
    return to_jsonable_python(value, by_alias=True)


_encode = msgspec.json.Encoder(enc_hook=_dumped).encode
_encode_plain = msgspec.json.Encoder(enc_hook=_written).encode
_read_raw = msgspec.json.Decoder(Raw).decode


def _by_annotation(adapter: TypeAdapter[Any], value: Any) -> bytes:
    return adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")


def _revealed(adapter: TypeAdapter[Any], value: Any, *, bytes_mode: Any = "utf8") -> bytes:
    python = adapter.dump_python(value, by_alias=True, round_trip=True, warnings="error")
    shown = _without_secrets(python)
    return to_pydantic_json(shown, by_alias=True, bytes_mode=bytes_mode, inf_nan_mode="null")


def _without_secrets(value: Any) -> Any:
    if isinstance(value, _SECRETS):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _without_secrets(each) for key, each in value.items()}
    if isinstance(value, list | tuple | AbstractSet):
        return [_without_secrets(each) for each in value]
    return value


_WRITERS: tuple[Callable[[TypeAdapter[Any], Any], bytes], ...] = (
    _as_ever,
    _by_annotation,
    _revealed,
    partial(_revealed, bytes_mode="base64"),
)
"""The ways to write a value, of which the first is used that is read as an equal value."""


def _check_plain(value: Any, place: Place) -> None:
    """Refuse what JSON would change, in a place whose annotation does not say how to undo it."""
    kind = type(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise Unfit.at(place, f"JSON has no {value}", "finite_number")
    elif isinstance(value, _BYTES + _SECRETS):
        raise Unfit.at(place, f"{kind.__name__} is sent only where the annotation says so")
    elif isinstance(value, BaseModel):
        _check_model(value, place)
    elif (parts := _parts(value)) is None:
        _check_leaf(value, place)
    else:
        for key, each in parts:
            if isinstance(value, Mapping) and not isinstance(key, str):
                raise Unfit.at((*place, _cut(repr(key))), "a key in JSON is a string")
            _check_plain(each, (*place, key))


def _check_leaf(value: Any, place: Place) -> None:
    try:
        _encode_plain(value)
    except (ValueError, TypeError) as error:
        raise Unfit.at(place, f"{type(error).__name__}: {_text(error)}", "unwritable") from None


def _parts(value: Any) -> Iterable[tuple[Any, Any]] | None:
    if isinstance(value, Enum):
        return [("value", value.value)]
    if isinstance(value, Mapping):
        return value.items()
    if _is_sequence(value) or isinstance(value, AbstractSet):
        return enumerate(value)
    return _attributes(value).items() or None


def _names_of_fields(kind: type[Any]) -> list[str]:
    """The fields of a dataclass, of a Struct of msgspec or of a class of attrs."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if issubclass(kind, msgspec.Struct):
        return list(kind.__struct_fields__)
    return [field.name for field in getattr(kind, "__attrs_attrs__", ())]


@cache
def _codec_of(model: type[BaseModel]) -> Codec:
    return Codec(model)


def _check_model(value: BaseModel, place: Place) -> None:
    try:
        _codec_of(type(value)).write(value)
    except Unfit as error:
        raise Unfit([{**each, "loc": [*place, *each["loc"]]} for each in error.problems]) from None


# --- comparing ----------------------------------------------------------------------------------


def _settled(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value  # what Pydantic reads lazily


def _compare(sent: Any, arrived: Any, place: Place, *, anything: bool) -> None:
    """Raises Unfit if a value would arrive as another; `anything` allows what `Any` does."""
    compare = partial(_compare, anything=anything)
    if isinstance(sent, BaseModel) and type(sent) is type(arrived):
        _compare_fields(_fields(sent), _fields(arrived), place, compare)
    elif dataclasses.is_dataclass(sent) and type(sent) is type(arrived):
        _compare_fields(_attributes(sent), _attributes(arrived), place, compare)
    elif isinstance(sent, Mapping) and isinstance(arrived, Mapping):
        _compare_fields(sent, arrived, place, compare)
    elif _is_sequence(sent) and _is_sequence(arrived) and len(sent) == len(arrived):
        for index, (one, other) in enumerate(zip(sent, arrived, strict=True)):
            compare(one, other, (*place, index))
    elif not _equal(sent, arrived):
        if not anything or not isinstance(arrived, str | int | float | list | dict):
            raise Unfit.at(place, _change(sent, arrived))
        _check_plain(sent, place)


def _compare_fields(
    sent: Mapping[Any, Any], arrived: Mapping[Any, Any], place: Place, compare: Callable[..., None]
) -> None:
    for key in [*sent, *(key for key in arrived if key not in sent)]:
        where = (*place, key if isinstance(key, str | int) else _cut(repr(key)))
        if key not in sent or key not in arrived:
            raise Unfit.at(where, "it would not arrive under this key")
        compare(sent[key], arrived[key], where)


def _fields(model: BaseModel) -> dict[str, Any]:
    return {**model.__dict__, **(model.__pydantic_extra__ or {})}


def _attributes(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _names_of_fields(type(value))}


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, *_BYTES))


def _equal(sent: Any, arrived: Any) -> bool:
    equals: Any = type(sent).__eq__
    if type(sent) is type(arrived) and equals is object.__eq__:
        return True  # nothing says when two of these are equal
    return bool(sent == arrived)


def _change(sent: Any, arrived: Any) -> str:
    if isinstance(sent, float) and not isfinite(sent):
        return f"JSON has no {sent}"
    kinds = type(sent).__name__, type(arrived).__name__
    return f"a {kinds[0]} would arrive {'changed' if kinds[0] == kinds[1] else f'as a {kinds[1]}'}"


def _unfit(error: ValidationError) -> Unfit:
    if (number := error.error_count()) > MAX_COUNTED:
        return Unfit.at((), f"{number} parts of it do not fit", "too_many_problems")
    # The error's own text has the value in it, which may be secret.
    return Unfit(
        [
            problem(each["loc"], each["msg"], each["type"])
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the user's
        return "its message cannot be read"
