"""How a model becomes the bytes of a record, and comes back from them.

    byte 0      the format of what follows: 1
    bytes 1-2   the version of the model that wrote it, big-endian
    from 3      the model as JSON, by field name, None included

The version of a model is the number of its upgrade functions, so that it grows by one with each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from strongroom.errors import RecordInvalid
from strongroom.storage.records import MAX_VALUE_BYTES, Record, check_value

M = TypeVar("M", bound=BaseModel)

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a record's JSON object as one version of the model wrote it, gives the next version's."""

FORMAT = 1
HEADER_BYTES = 3


class Encoding(Generic[M]):
    """Encodes and decodes the records of one namespace."""

    def __init__(self, model: type[M], namespace: str, upgrade: Sequence[Upgrade] = ()) -> None:
        self._model = model
        self._namespace = namespace
        self._upgrade = tuple(upgrade)
        self._header = _header(len(self._upgrade))
        adapter = TypeAdapter(model)  # its parts, since BaseModel's own methods cost twice as much
        self._to_json = adapter.serializer.to_json
        self._from_json = adapter.validator.validate_json

    def encode(self, key: str, value: M) -> bytes:
        """The bytes of `value`; `key` is for the error's sentence.

        Raises:
            TypeError: `value` is not of the model itself. A subclass is refused too, since its own
                fields would not come back.
            RecordInvalid: A field holds what its type does not allow.
            ValueTooLarge: The record is too long.
        """
        if type(value) is not self._model:
            raise TypeError(
                f"The store {self._namespace!r} keeps {self._model.__name__}, and {key!r} was to "
                f"be set to an instance of {type(value).__name__}."
            )
        try:
            data = self._header + self._to_json(
                value, by_alias=False, round_trip=True, warnings="error"
            )
        except PydanticSerializationError as error:
            raise self._invalid(key, f"cannot be stored: {error}") from error
        check_value(key, data, MAX_VALUE_BYTES)
        return data

    def decode(self, record: Record) -> M:
        """The model that `record` holds, a fresh object each time.

        Raises:
            RecordInvalid: It does not fit the model, or a newer version of the model wrote it.
        """
        data = record.value.removeprefix(self._header)
        if data is record.value:  # it begins with another header
            data = self._upgraded(record)
        try:
            return self._from_json(data, by_alias=False, by_name=True)  # type: ignore[no-any-return]
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or None
            # Not `from error`: its text shows the stored value, which no log should.
            raise self._invalid(
                record.key,
                f"does not fit {self._model.__name__}: {field or 'the record'}: {first['msg']}. "
                "Try: a default for the field, or a function in upgrade= that brings older records "
                "up to date",
                field,
            ) from None

    def _upgraded(self, record: Record) -> bytes:
        """The JSON of an older record, as the present version of the model has it."""
        version = self._version(record)
        data = from_json(record.value[HEADER_BYTES:])
        for step in range(version, len(self._upgrade)):
            try:
                data = self._upgrade[step](data)
            except Exception as error:
                raise self._invalid(
                    record.key,
                    f"could not be upgraded from version {step} of {self._model.__name__} to "
                    f"{step + 1}: {type(error).__name__}",
                ) from error
        return to_json(data)

    def _version(self, record: Record) -> int:
        if len(record.value) < HEADER_BYTES or record.value[0] != FORMAT:
            raise self._invalid(
                record.key,
                "is not in a format that this version knows. Try: the newest Strongroom",
            )
        version = int.from_bytes(record.value[1:HEADER_BYTES])
        if version > len(self._upgrade):
            raise self._invalid(
                record.key,
                f"was written by version {version} of {self._model.__name__}, and this program has "
                f"version {len(self._upgrade)}. Try: the newer program, or all of its upgrade= "
                "functions here",
            )
        return version

    def _invalid(self, key: str, what: str, field: str | None = None) -> RecordInvalid:
        message = f"The record {key!r} of {self._namespace!r} {what}"
        return RecordInvalid(message, namespace=self._namespace, key=key, field=field)


def _header(version: int) -> bytes:
    return bytes((FORMAT,)) + version.to_bytes(2)


def split(value: bytes) -> tuple[int, bytes] | None:
    """The model's version and the JSON in a record's bytes; None if they are something else."""
    if len(value) <= HEADER_BYTES or value[0] != FORMAT:
        return None
    try:
        from_json(text := value[HEADER_BYTES:], allow_inf_nan=False)
    except ValueError:
        return None
    return int.from_bytes(value[1:HEADER_BYTES]), text


def join(version: int, text: bytes) -> bytes:
    """The bytes of a record that holds this JSON, as a version of its model wrote it."""
    return _header(version) + text
