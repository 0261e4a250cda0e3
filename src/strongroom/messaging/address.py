"""Addresses, physical paths and ids."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from strongroom.errors import InvalidAddress

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BYTE_TO_DIGIT = bytes(_ALPHABET[byte % 62] for byte in range(256))

_ADDRESS = re.compile(
    r"(?P<participant>[A-Za-z0-9_-]+)@"
    r"(?P<host>(?:\*(?=\.)|[A-Za-z0-9-]+)(?:\.[A-Za-z0-9-]+)*)?"
    r"(?P<path>(?:/[A-Za-z0-9._-]+)+)?"
)
_NODE_ID = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,128}")
MAX_ADDRESS = 512

REPLIES = "__rpc__"
"""Prefix of the participant to which a node's replies go."""
SYSTEM = "__sys__"
"""Participant to which a node's acknowledgements go."""


class Address(NamedTuple):
    """`participant@location`. The location is a host (logical), a path (physical), or both.

    >>> Address.parse("storage@fame.fabric").host
    'fame.fabric'
    """

    participant: str
    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            InvalidAddress: `text` is not an address.
        """
        return _parse(str(text))

    @property
    def is_pool(self) -> bool:
        """Whether the host begins with `*.`, so that several nodes may share the address."""
        return self.host.startswith("*.")

    def member(self, node_id: str) -> Address:
        """The address of one member of this pool."""
        return self._replace(host=node_id + self.host[1:])

    def __str__(self) -> str:
        return f"{self.participant}@{self.host}{self.path}"


class FameAddress(str):
    """An address as text, which has been checked.

    >>> FameAddress("storage@fame.fabric")
    'storage@fame.fabric'

    Raises:
        InvalidAddress: The text is not an address.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        _parse(str(text))
        return super().__new__(cls, text)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> CoreSchema:
        from pydantic_core import core_schema  # noqa: PLC0415 - a sentinel does without it

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


@lru_cache(maxsize=4096)
def _parse(text: str) -> Address:
    match = _ADDRESS.fullmatch(text) if len(text) <= MAX_ADDRESS else None
    if match is None or not (match["host"] or match["path"]):
        raise InvalidAddress(
            f"{text[:80]!r} is not an address.",
            remedy="a name and a place, as in storage@fame.fabric",
        )
    return Address(match["participant"], match["host"] or "", match["path"] or "")


def is_address(text: str) -> bool:
    """Whether `text` is an address."""
    try:
        _parse(text)
    except InvalidAddress:
        return False
    return True


def is_node_id(text: str) -> bool:
    """Whether `text` can be a node's id."""
    return _NODE_ID.fullmatch(text) is not None


def check_node_id(node_id: str) -> str:
    """Return `node_id` if it can be a path segment, else raise InvalidAddress."""
    if not _NODE_ID.fullmatch(node_id):
        raise InvalidAddress(
            f"{node_id[:80]!r} cannot be a node's id.", remedy="letters, digits, '.', '_' or '-'"
        )
    return node_id


def new_id() -> str:
    """A random id of 16 letters and digits, as peers use for envelopes, calls and nodes."""
    try:
        return _ids.pop()
    except IndexError:
        digits = os.urandom(16 * 256).translate(_BYTE_TO_DIGIT).decode()
        _ids.extend(digits[start : start + 16] for start in range(16, len(digits), 16))
        return digits[:16]


_ids: list[str] = []
"""Ids that were made and not used yet: asking the kernel for each takes longer than all else."""
os.register_at_fork(after_in_child=_ids.clear)


@lru_cache(maxsize=16)
def source_id(path: str) -> str:
    """The `sid` that names the sender of an envelope: a digest of its physical path."""
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:16], "big")
    digits = bytearray()
    while number:
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return digits[::-1].decode()


@lru_cache(maxsize=4096)
def source_of(reply_to: str | None) -> str:
    """The id of the sentinel's child to which the answers to a message go; empty if not known.

    Unlike the child's path, it stays the same when the sentinel gets another id. What is below the
    child counts as the child, which could otherwise be any number of sources.
    """
    path = (reply_to or "").partition("@")[2].split("/", 3)
    return path[2] if len(path) > 2 else ""  # noqa: PLR2004 - nothing, the sentinel, the node
