"""The contract of a storage backend: bytes in, bytes out, and a handful of primitives.

An author of a provider implements `RecordStore` and `StorageProvider`; everything that users hold
(`KeyValueStore`) is written once on top of these. `strongroom.testing` tells when it is right.
"""

from __future__ import annotations

import enum
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from strongroom.errors import InvalidKey, InvalidNamespace, ValueTooLarge

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 64 * 1024 * 1024
PAGE_RECORDS = 256
PAGE_BYTES = 1024 * 1024

TOMBSTONE_AGE = 24 * 3600 * 1_000_000  # µs
TOMBSTONE_COUNT = 100_000
"""A store that declares WATCH remembers a deletion for so long, unless as many came after it."""

Clock = Callable[[], int]
"""Returns the time in microseconds since 1970, UTC."""


OnProgress = Callable[[str, int, int], None]
"""Called with what is being worked on, how much of it is done, and how much there is."""


def system_clock() -> int:
    """The wall clock, in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Feature(enum.Enum):
    """What an engine really gives; a provider declares those that hold."""

    DURABLE = "durable"
    """An acknowledged write survives a crash of the process and of the machine."""
    ATOMIC = "atomic"
    """Several writes in one `apply` are stored all or none, and its checks hold at that moment.
    Of a single write, with its own condition, this is true of every store."""
    ORDERED = "ordered"
    """`scan` goes in the order of the keys' UTF-8 bytes, forwards or backwards. Without it the
    order is the engine's own, and `after` goes on behind a key in that order."""
    TTL = "ttl"
    """Records expire."""
    WATCH = "watch"
    """`changes` waits for what comes and misses nothing."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One stored record. Times are microseconds since 1970, UTC."""

    key: str
    value: bytes
    revision: int
    created: int
    updated: int
    expires: int | None = None


class Write(msgspec.Struct, frozen=True, gc=False):
    """One write of an `apply`.

    `value` None deletes. `expires` is a time in microseconds. `expect` is a condition: the revision
    that the record must be at, 0 for "must not exist", None for no condition.
    """

    key: str
    value: bytes | None
    expires: int | None = None
    expect: int | None = None


class Page(msgspec.Struct, frozen=True, gc=False):
    """A part of a scan. `more` says whether records follow the last one of `records`."""

    records: list[Record]
    more: bool


class RecordChange(msgspec.Struct, frozen=True, gc=False):
    """The latest state of a changed key: its record, or None where it was deleted or expired."""

    key: str
    revision: int
    record: Record | None


class Changes(msgspec.Struct, frozen=True, gc=False):
    """Changes in the order of their revisions, and the cursor from which to go on."""

    changes: list[RecordChange]
    cursor: int


class RecordStore(ABC):
    """One namespace of a backend. Every method may be called concurrently.

    Revisions are per namespace: they start at 1 and only grow, each write takes a new one. A record
    whose `expires` has come is invisible to every method at once; written again after that, it is
    created anew. What reaches a store through `KeyValueStore` has been checked: keys and prefixes
    by `check_key`, values by `check_value`, and no feature is asked for that is not declared.

    A call that is cancelled was carried out wholly or not at all, and the store goes on. After
    `close` every method raises `StoreClosed`, those that were waiting too.
    """

    features: frozenset[Feature]

    @abstractmethod
    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        """The records of `keys`, in their order; None for one that does not exist."""

    @abstractmethod
    async def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = PAGE_RECORDS,
        max_bytes: int | None = PAGE_BYTES,
        reverse: bool = False,
        values: bool = True,
    ) -> Page:
        """The records whose keys begin with `prefix`, in the order of the keys' UTF-8 bytes.

        Args:
            prefix: What the keys begin with.
            after: Go on behind this key (before it, when `reverse`); it need not exist.
            limit: At most so many records; None for all of them, as one snapshot.
            max_bytes: The page's values hold at most so many bytes together; one record is always
                given.
            reverse: From the last key to the first.
            values: False leaves `value` empty, for callers that want the keys alone.
        """

    @abstractmethod
    async def count(self, prefix: str = "") -> int:
        """How many records have keys that begin with `prefix`."""

    @abstractmethod
    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        """Store all of `writes`, or none, and return when they are durable.

        Args:
            writes: No key stands in them twice. There may be none, when only `checks` matter.
            checks: Keys that must be at these revisions (0: absent), though they are not written.

        Returns:
            The new revision of each write, in their order; 0 for the deletion of a key that does
            not exist.

        Raises:
            RevisionConflict: A condition does not hold; nothing was stored.
        """

    @abstractmethod
    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        """What changed after the revision `after`, waiting for the first change if there is none.

        Each changed key appears once, in its latest state. A record that expires is a change, also
        while this waits: look at the clock at least once a second, since clocks get set. A page
        ends after `limit` changes, or as `scan` does after PAGE_BYTES.

        Args:
            after: The cursor. With None, returns at once with no changes and the present revision
                as the cursor. With 0, every record that is there counts as changed, and 0 never
                expires.
            since: The revision at which a walk from 0 began. As the walk had seen nothing then,
                its cursor is good as long as the deletions after this revision are remembered.
            prefix: What the keys begin with.
            limit: At most so many changes.

        Raises:
            WatchExpired: `after` is older than the deletions that the store still remembers, or
                newer than the store.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release the store once the writes under way are done. Closing twice does nothing."""


_NAMESPACE = re.compile(r"(__)?[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_namespace(name: str, others: Iterable[str] = ()) -> None:
    """Raise InvalidNamespace unless `name` can be a namespace on every platform.

    Not every filesystem tells `Notes` from `notes`, so a name may not differ from one of `others`
    only in case.
    """
    allowed = _NAMESPACE.fullmatch(name)
    if not allowed or name.endswith((".", "_encrypted_value")) or _DEVICE_NAME.fullmatch(name):
        raise InvalidNamespace(
            f"{name!r} cannot be a namespace.",
            remedy=(
                "1 to 120 letters, digits, '.', '_' or '-', beginning with a letter or "
                "digit, not ending in '.' or '_encrypted_value'"
            ),
        )
    folded = name.lower()
    for other in others:
        if other.lower() == folded and other != name:
            raise InvalidNamespace(
                f"{name!r} differs only in case from the namespace {other!r}.",
                remedy=f"{other!r}, or a name that differs in more",
            )


def check_key(key: str) -> None:
    """Raise InvalidKey unless `key` is a string of 1 to 1024 UTF-8 bytes without NUL."""
    if type(key) is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES and "\0" not in key:
        return  # nearly every key
    if not isinstance(key, str):
        raise InvalidKey(f"A key is a string, and {key!r} is of type {type(key).__name__}.")
    if not key:
        raise InvalidKey("A key has at least one character, and this one is empty.")
    if "\0" in key:
        raise InvalidKey(f"{key!r} holds a NUL character, which no key may.")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"{key!r} holds a lone surrogate, which UTF-8 cannot encode.") from None
    if size > MAX_KEY_BYTES:
        raise InvalidKey(f"{key[:40]!r}… has {size} bytes; a key has at most {MAX_KEY_BYTES}.")


def check_value(key: str, value: bytes, limit: int = MAX_VALUE_BYTES) -> None:
    """Raise ValueTooLarge when `value` is longer than `limit` bytes."""
    if len(value) > limit:
        raise ValueTooLarge(f"The record {key!r} has {len(value)} bytes; at most {limit} fit.")


def prefix_end(prefix: str) -> str | None:
    """The first string behind all keys that begin with `prefix`; None if nothing is behind them.

    >>> prefix_end("user:")
    'user;'
    """
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    # Code points sort as their UTF-8 bytes do; the surrogates between U+D7FF and U+E000 have none.
    following = 0xE000 if stem[-1] == "\ud7ff" else ord(stem[-1]) + 1
    return stem[:-1] + chr(following)
