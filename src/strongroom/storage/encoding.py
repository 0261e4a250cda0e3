"""How a model is encoded as the bytes of a record, and decoded again.

    byte 0      the format of what follows: 1
    bytes 1-2   the version of the model that wrote it, big-endian
    from 3      the model as JSON, by field name, None included

The version of a model is the number of its upgrade functions: each new one raises it by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from strongroom.errors import RecordInvalid
from strongroom.storage.records import MAX_VALUE_BYTES, Record, check_value

M = TypeVar("M", bound=BaseModel)

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a JSON object as one version of the model wrote it, returns it as the next writes it."""

FORMAT = 1
HEADER_BYTES = 3

_PLAIN_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool}
_HARMLESS = {"metadata", "validation_alias", "serialization_alias"}
_LONGEST_INTEGER = 4000  # digits; Pydantic refuses to read more than 4300
_to_json = msgspec.json.Encoder().encode


class Encoding(Generic[M]):
    """Encodes and decodes the records of one namespace."""

    def __init__(self, model: type[M], namespace: str, upgrade: Sequence[Upgrade] = ()) -> None:
        self.model = model
        self._namespace = namespace
        self._upgrade = tuple(upgrade)
        self._header = _header(len(self._upgrade))
        adapter = TypeAdapter(model)  # used directly: the methods of BaseModel take twice as long
        self._to_json = adapter.serializer.to_json
        self._from_json = adapter.validator.validate_json
        self._plain = _plain_fields(adapter.core_schema)

    def encode(self, key: str, value: M) -> bytes:
        """The bytes of `value`. Errors name `key`.

        Raises:
            TypeError: `value` is not an instance of the model itself. One of a subclass is refused
                too, since the subclass's fields would be lost.
            RecordInvalid: A field has a value that its type does not allow, or could not be read.
            ValueTooLarge: The record is too large.
        """
        if type(value) is not self.model:
            raise TypeError(
                f"The store {self._namespace!r} keeps {self.model.__name__}, and {key!r} was to "
                f"be set to an instance of {type(value).__name__}."
            )
        try:
            text = self._plain_json(value) or self._checked_json(value)
        except PydanticSerializationError as error:
            raise self._invalid(key, f"cannot be stored: {error}") from error
        except ValidationError as error:
            field, reason = _first(error)
            raise self._invalid(
                key,
                f"cannot be stored, as it could not be read again: {field or 'the record'}: "
                f"{reason}.",
                remedy=f"a value that {self.model.__name__} allows",
                field=field,
            ) from None
        data = self._header + text
        check_value(key, data, MAX_VALUE_BYTES)
        return data

    def _plain_json(self, value: M) -> bytes | None:
        """The JSON of a model whose type and values are simple enough to be read back unchanged.

        Returns None for any other. Pydantic's checks would take longer than the rest of a `set`.
        """
        fields = value.__dict__
        if self._plain is None or len(fields) != len(self._plain):
            return None
        for name, types in self._plain.items():
            if type(fields.get(name, ...)) not in types:
                return None
        try:
            text = _to_json(fields)
        except ValueError:  # not UTF-8, or too many digits: Pydantic has the better message
            return None
        if len(text) > _LONGEST_INTEGER:
            self._from_json(text, by_alias=False, by_name=True)
        return text

    def _checked_json(self, value: M) -> bytes:
        """The JSON of any model, after reading it: Pydantic can write what it cannot read."""
        text = self._to_json(value, by_alias=False, round_trip=True, warnings="error")
        self._from_json(text, by_alias=False, by_name=True)
        return text

    def decode(self, record: Record) -> M:
        """The model in `record`, a new object each time.

        Raises:
            RecordInvalid: It does not fit the model, or a newer version of the model wrote it.
        """
        data = record.value.removeprefix(self._header)
        if data is record.value:  # it has another header
            data = self._upgraded(record)
        try:
            return self._from_json(data, by_alias=False, by_name=True)  # type: ignore[no-any-return]
        except ValidationError as error:
            field, reason = _first(error)
            raise self._invalid(
                record.key,
                f"does not fit {self.model.__name__}: {field or 'the record'}: {reason}.",
                remedy=(
                    "a default for the field, or a function in upgrade= that brings older records "
                    "up to date"
                ),
                field=field,
            ) from None

    def _upgraded(self, record: Record) -> bytes:
        """The JSON of an older record, as the current version of the model stores it."""
        version = self._version(record)
        data = from_json(record.value[HEADER_BYTES:])
        for step in range(version, len(self._upgrade)):
            try:
                data = self._upgrade[step](data)
            except Exception as error:
                raise self._invalid(
                    record.key,
                    f"could not be upgraded from version {step} of {self.model.__name__} to "
                    f"{step + 1}: {type(error).__name__}",
                ) from error
        return to_json(data)

    def _version(self, record: Record) -> int:
        if len(record.value) < HEADER_BYTES or record.value[0] != FORMAT:
            raise self._invalid(
                record.key,
                "is not in a format that this version knows.",
                remedy="the newest Strongroom",
            )
        version = int.from_bytes(record.value[1:HEADER_BYTES])
        if version > len(self._upgrade):
            raise self._invalid(
                record.key,
                f"was written by version {version} of {self.model.__name__}, but this program has "
                f"version {len(self._upgrade)}.",
                remedy="the newer program, or add its upgrade= functions to this one",
            )
        return version

    def _invalid(
        self, key: str, what: str, *, remedy: str | None = None, field: str | None = None
    ) -> RecordInvalid:
        return RecordInvalid(
            f"The record {key!r} of {self._namespace!r} {what}",
            remedy=remedy,
            namespace=self._namespace,
            key=key,
            field=field,
        )


def _header(version: int) -> bytes:
    return bytes((FORMAT,)) + version.to_bytes(2)


def _first(error: ValidationError) -> tuple[str | None, str]:
    """The first invalid field (None: the record as a whole), and what is wrong with it.

    Do not chain `error` to another one: its text contains the value, which must not be logged.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])) or None, first["msg"]


def _plain_fields(model: Any) -> dict[str, frozenset[type]] | None:
    """The types of a model's fields, from its core schema; None unless all of them are simple.

    Each part of the schema must be known here: settings, constraints, validators, serialisers and
    private attributes can all change what is read back.
    """
    match model:
        case {
            "type": "model",
            "schema": {"type": "model-fields", "fields": fields, **more_of_fields},
            "config": config,
            "custom_init": False,
            "root_model": False,
            **more,
        } if (
            config.keys() <= {"title"}
            and more_of_fields.keys() <= {"model_name", "computed_fields"}
            and more.keys() <= {"cls", "ref", "metadata"}
        ):
            types = {name: _plain_types(field) for name, field in fields.items()}
            return types if all(types.values()) else None
    return None


def _plain_types(field: Any) -> frozenset[type]:
    match field:
        case {"type": "model-field", "schema": inner, **more} if more.keys() <= _HARMLESS:
            return _plain_types(inner)
        case {"type": "default", "schema": inner, **more} if "serialization" not in more:
            return _plain_types(inner)
        case {"type": "nullable", "schema": inner, **more} if not more:
            return _plain_types(inner) and _plain_types(inner) | {type(None)}
        case {"type": "str" | "int" | "bool" as name, **more} if not more:
            return frozenset({_PLAIN_TYPES[name]})
    return frozenset()


def split(value: bytes) -> tuple[int, bytes] | None:
    """The model's version and the JSON in a record's bytes; None if they have another format."""
    if len(value) <= HEADER_BYTES or value[0] != FORMAT:
        return None
    try:
        from_json(text := value[HEADER_BYTES:], allow_inf_nan=False)
    except ValueError:
        return None
    return int.from_bytes(value[1:HEADER_BYTES]), text


def join(version: int, text: bytes) -> bytes:
    """The bytes of a record with this JSON, as this version of its model writes it."""
    return _header(version) + text
