"""How a model is encoded as the bytes of a record, and decoded again.

    byte 0      the format of what follows: 1
    bytes 1-2   the version of the model that wrote it, big-endian
    from 3      the model as JSON, by field name, None included

The version of a model is the number of its upgrade functions: each new one raises it by one.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Generic, Protocol, TypeVar, get_args

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from pydantic_core.core_schema import ErrorType

from strongroom.errors import RecordInvalid
from strongroom.storage.records import MAX_VALUE_BYTES, Record, check_value
from strongroom.storage.roundtrip import difference, has_secret, revealed

M = TypeVar("M", bound=BaseModel)
V = TypeVar("V", bound=BaseModel | bytes)

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a JSON object as one version of the model wrote it, returns it as the next writes it."""

FORMAT = 1
HEADER_BYTES = 3

_PLAIN_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool}
_HARMLESS = {"metadata", "validation_alias", "serialization_alias"}
# In a core schema of these types alone, no value can be a secret.
_WITHOUT_SECRETS = {
    *("model", "model-fields", "model-field", "default", "nullable", "definitions"),
    *("str", "int", "bool", "float", "bytes", "none", "literal", "enum", "uuid"),
    *("date", "datetime", "time", "timedelta", "list", "dict", "tuple", "set", "frozenset"),
}
_LONGEST_INTEGER = 4000  # digits; Pydantic refuses to read more than 4300
_to_json = msgspec.json.Encoder().encode
# Pydantic's messages, without those that quote the value or come from a validator of the user
_SAFE_MESSAGES = set(get_args(ErrorType)) - {
    *("value_error", "assertion_error", "union_tag_invalid", "get_attribute_error"),
    *("iteration_error", "mapping_type", "no_such_attribute"),
}
_log = logging.getLogger(__name__)


class RecordEncoding(Protocol[V]):
    """Encodes and decodes the records of one namespace: models, or bytes (`opaque.py`)."""

    model: type[V]

    def encode(self, key: str, value: V) -> bytes:
        """The record's bytes."""

    def decode(self, record: Record) -> V:
        """The value in `record`."""

    @staticmethod
    def copied(value: V) -> V:
        """A copy that shares nothing with `value`."""


class Encoding(Generic[M]):
    """Encodes and decodes the records of one namespace."""

    def __init__(
        self,
        model: type[M],
        namespace: str,
        upgrade: Sequence[Upgrade] = (),
        *,
        encrypts: bool = True,
    ) -> None:
        self.model = model
        self._namespace = namespace
        self._upgrade = tuple(upgrade)
        self._encrypts = encrypts
        self._header = _header(len(self._upgrade))
        adapter = TypeAdapter(model)  # used directly: the methods of BaseModel take twice as long
        self._to_json = adapter.serializer.to_json
        self._from_json = adapter.validator.validate_json
        self._plain = _plain_fields(adapter.core_schema)
        self._names = frozenset(_field_names(adapter.core_schema))
        self._may_have_secrets = not _types_in(adapter.core_schema) <= _WITHOUT_SECRETS

    def encode(self, key: str, value: M) -> bytes:
        """The bytes of `value`. Errors name `key`.

        Raises:
            TypeError: `value` is not an instance of the model itself. One of a subclass is refused
                too, since the subclass's fields would be lost.
            RecordInvalid: A field has a value that its type does not allow, or that would be
                another one when it is read again.
            ValueTooLarge: The record is too large.
        """
        if type(value) is not self.model:
            raise TypeError(
                f"The store {self._namespace!r} keeps {self.model.__name__}, and {key!r} was to "
                f"be set to an instance of {type(value).__name__}."
            )
        text = self._plain_json(value)
        if text is None:
            text = self._checked_json(key, value)
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
        return text if len(text) <= _LONGEST_INTEGER else None

    def _checked_json(self, key: str, value: M) -> bytes:
        """The JSON of any model, if reading it gives `value` again.

        Errors are raised after the `except`, since Pydantic's own, which quote the value, would
        otherwise be chained to them.
        """
        what = "cannot be stored"
        try:
            text = self._written(value)
            field = difference(value, self._from_json(text, by_alias=False, by_name=True))
            if field is None:
                return text
            reason = "another value would be read back"
        except ValidationError as error:
            what = "cannot be stored, as it could not be read again"
            field, reason = self._first(error)
        except Exception as error:  # noqa: BLE001  # serialisers and validators of users
            field, reason = _unwritable(error)
        raise self._invalid(
            key,
            f"{what}: {field or 'the record'}: {reason}.",
            remedy=f"a value that {self.model.__name__} can write as JSON and read again",
            field=field or None,
        )

    def _written(self, value: M) -> bytes:
        """The JSON of any model, with its secrets: Pydantic would write asterisks."""
        text: bytes = self._to_json(value, by_alias=False, round_trip=True, warnings="error")
        if not (self._may_have_secrets and has_secret(value)):
            return text
        if not self._encrypts:
            _warn_plain(self._namespace)
        return to_json(revealed(value, from_json(text)), inf_nan_mode="constants")

    @staticmethod
    def copied(value: M) -> M:
        """A copy that shares nothing with `value`."""
        return value.model_copy(deep=True)

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
            field, reason = self._first(error)
        except Exception as error:  # noqa: BLE001  # a validator of the user
            field, reason = None, f"a validator raised {type(error).__name__}"
        raise self._invalid(
            record.key,
            f"does not fit {self.model.__name__}: {field or 'the record'}: {reason}.",
            remedy=(
                "a default for the field, or a function in upgrade= that brings older records "
                "up to date"
            ),
            field=field,
        )

    def _upgraded(self, record: Record) -> bytes:
        """The JSON of an older record, as the current version of the model stores it."""
        version = self._version(record)
        step = version
        try:
            data: Any = from_json(record.value[HEADER_BYTES:])
            for step in range(version, len(self._upgrade)):
                function: Callable[[Any], Any] = self._upgrade[step]
                data = function(data)
                if inspect.iscoroutine(data):
                    data.close()
                    raise TypeError("an upgrade function must not be async")
            return to_json(data)
        except Exception as error:  # noqa: BLE001  # users wrote the functions
            reason = type(error).__name__
        raise self._invalid(
            record.key,
            f"could not be upgraded from version {step} of {self.model.__name__} to {step + 1}: "
            f"{reason}.",
            remedy="upgrade= functions that take and return a JSON object",
        )

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

    def _first(self, error: ValidationError) -> tuple[str | None, str]:
        """The first invalid field (None: the record as a whole), and what is wrong with it.

        Do not chain `error` to another one: its text contains the value, which must not be logged.
        A key of a dictionary in the location is a value too.
        """
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        known = (part if part in self._names else "*" for part in first["loc"])
        shown = ".".join(
            str(at) if isinstance(at, int) else name
            for at, name in zip(first["loc"], map(str, known), strict=True)
        )
        if first["type"] in _SAFE_MESSAGES:
            return shown or None, first["msg"]
        return shown or None, "its validator refuses the value"

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


@cache
def _warn_plain(namespace: str) -> None:
    _log.warning(
        "Secrets are stored in %r, and this storage profile does not encrypt them.", namespace
    )


def _unwritable(error: Exception) -> tuple[str | None, str]:
    """The field that Pydantic could not write, and the expected type. Its text has the value too.

    The first of each pattern comes before the value.
    """
    text = str(error)
    field = re.search(r"field_name='(\w+)'", text.partition("input_value=")[0])
    expected = re.search(r"Expected `([^`]*)`", text.partition("input_value=")[0])
    reason = f"{expected[1]} was expected" if expected else f"{type(error).__name__} in writing it"
    return field and field[1], reason


def _field_names(schema: Any) -> Iterator[str]:
    """The names of all fields in a core schema, of nested models too."""
    if isinstance(schema, dict):
        if isinstance(fields := schema.get("fields"), dict):
            yield from fields
        if schema.get("type") == "dataclass-field":
            yield schema["name"]
        for part in schema.values():
            yield from _field_names(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from _field_names(part)


def _types_in(schema: Any) -> set[str]:
    """The types of all parts of a core schema."""
    if isinstance(schema, dict):
        own = {schema["type"]} if isinstance(schema.get("type"), str) else set()
        return own.union(*map(_types_in, schema.values()))
    return set().union(*map(_types_in, schema)) if isinstance(schema, list | tuple) else set()


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
