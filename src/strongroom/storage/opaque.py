"""How bytes that only their owner understands are kept as the bytes of a record.

    byte 0      the format of what follows: 2
    byte 1      the length of the owner's name in bytes
    from 2      the owner's name, then the bytes as they were given

The owner is the program, or the library, that wrote them: `langgraph-checkpoint/1`.
"""

from __future__ import annotations

import re

from strongroom.errors import RecordInvalid
from strongroom.storage.records import MAX_VALUE_BYTES, Record, check_value

FORMAT = 2
_OWNER = re.compile(r"[!-~]{0,120}")


class BytesEncoding:
    """Encodes and decodes the records of one namespace, which are bytes."""

    def __init__(self, namespace: str, owner: str) -> None:
        self.model = bytes
        self._namespace = namespace
        self._header = header(owner)

    def encode(self, key: str, value: bytes) -> bytes:
        """The record's bytes. Errors name `key`.

        Raises:
            TypeError: `value` is not bytes.
            ValueTooLarge: The record is too large.
        """
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(
                f"The store {self._namespace!r} keeps bytes, and {key!r} was to be set to a "
                f"{type(value).__name__}."
            )
        data = self._header + bytes(value)
        check_value(key, data, MAX_VALUE_BYTES)
        return data

    def decode(self, record: Record) -> bytes:
        """The bytes in a record.

        Raises:
            RecordInvalid: Another owner wrote it, or it holds a model.
        """
        value = record.value.removeprefix(self._header)
        if value is not record.value:
            return value
        found = split(record.value)
        what = f"is of the owner {found[0]!r}" if found else "holds a model, and no bytes"
        raise RecordInvalid(
            f"The record {record.key!r} of {self._namespace!r} {what}.",
            remedy="the namespace and owner= with which it was written",
            namespace=self._namespace,
            key=record.key,
        )

    @staticmethod
    def copied(value: bytes) -> bytes:
        """The same bytes: nobody can change them."""
        return value


def header(owner: str) -> bytes:
    """What comes before the bytes of `owner` in each record. ValueError if it cannot be a name."""
    if not _OWNER.fullmatch(owner):
        raise ValueError(
            f"An owner's name has up to 120 ASCII characters and no blanks, unlike {owner!r}."
        )
    name = owner.encode()
    return bytes((FORMAT, len(name))) + name


def split(value: bytes) -> tuple[str, bytes] | None:
    """The owner and the bytes in a record's value; None if it has another format."""
    if len(value) < 2 or value[0] != FORMAT or len(value) < 2 + value[1]:  # noqa: PLR2004
        return None
    end = 2 + value[1]
    return value[2:end].decode("ascii", "replace"), value[end:]
