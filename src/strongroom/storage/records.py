"""The contract of a storage engine: a handful of operations on records, which are bytes.

The author of a provider implements `RecordStore` and `StorageProvider`. What users call
(`KeyValueStore`) is written once, on top of these. `strongroom.testing` checks an implementation.
"""

from __future__ import annotations

import enum
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from strongroom.errors import InvalidKey, InvalidNamespace, NotSupported, ValueTooLarge
from strongroom.storage.keys import Key, is_tuple

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 64 * 1024 * 1024
SHOWN_CHARACTERS = 80
PAGE_RECORDS = 256
PAGE_BYTES = 1024 * 1024

TOMBSTONE_AGE = 24 * 3600 * 1_000_000  # microseconds
TOMBSTONE_COUNT = 100_000
"""A store that declares WATCH remembers a deletion until it is older than TOMBSTONE_AGE, or
TOMBSTONE_COUNT deletions have followed."""

Clock = Callable[[], int]
"""Returns the time in microseconds since 1970, UTC."""


OnProgress = Callable[[str, int, int], None]
"""Called with what is being worked on, how much of it is done, and how much there is."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(microseconds: int) -> datetime:
    """A record's time as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(time: datetime) -> int:
    """The inverse of `to_datetime`."""
    return (time - _EPOCH) // timedelta(microseconds=1)


_LAST_TIME = to_microseconds(datetime.max.replace(tzinfo=UTC))


def system_clock() -> int:
    """The wall clock, in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Feature(enum.Enum):
    """What an engine can do beyond reading and writing single records. A provider declares it."""

    DURABLE = "durable"
    """An acknowledged write survives a crash of the process and of the machine."""
    ATOMIC = "atomic"
    """All writes of one `apply` are stored, or none, and its checks hold at that moment. A single
    write with its own condition is atomic in every store."""
    ORDERED = "ordered"
    """`scan` follows the order of the keys' UTF-8 bytes, forwards or backwards. Without it the
    order is the engine's, and `after` means after a key in that order."""
    TTL = "ttl"
    """Records expire."""
    TOUCH = "touch"
    """`touch` moves the expiry of a record, without a new revision. It needs TTL too."""
    WATCH = "watch"
    """`changes` waits for the next change and misses none."""
    TOGETHER = "together"
    """The provider's `apply_together` stores writes in several namespaces, or none of them."""


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

    `value` None deletes the record. `expires` is a time in microseconds. `expect` is a condition:
    the revision that the record must have, 0 for "must not exist", None for no condition.
    """

    key: str
    value: bytes | None
    expires: int | None = None
    expect: int | None = None


class Batch(msgspec.Struct, frozen=True):
    """The writes and checks of an `apply`, and the namespace that they are for."""

    namespace: str
    writes: Sequence[Write]
    checks: Mapping[str, int] | None = None


class Page(msgspec.Struct, frozen=True, gc=False):
    """A part of a scan. `more` says whether there are records after the last of `records`."""

    records: list[Record]
    more: bool


class RecordChange(msgspec.Struct, frozen=True, gc=False):
    """The latest state of a changed key: its record, or None where it was deleted or expired."""

    key: str
    revision: int
    record: Record | None


class Changes(msgspec.Struct, frozen=True, gc=False):
    """Changes in the order of their revisions, and the cursor with which to continue."""

    changes: list[RecordChange]
    cursor: int


class RecordStore(ABC):
    """One namespace. Every method may be called concurrently.

    Each write takes a new revision. Revisions belong to the namespace, start at 1 and only grow.
    When its time `expires` has come, a record is at once invisible to every method; written again,
    it is a new record. `KeyValueStore` has checked what it passes on: keys and prefixes by
    `check_key`, values by `check_value`. It asks for no feature that is not declared.

    A cancelled call was carried out completely or not at all, and the store continues to work.
    After `close` every method raises `StoreClosed`, also calls that were waiting.
    """

    features: frozenset[Feature]

    @abstractmethod
    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        """The records of `keys`, in their order; None for a key that does not exist."""

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
            after: Start after this key (with `reverse`: before it). It need not exist.
            limit: Maximum number of records. None: all of them, as of one moment.
            max_bytes: Maximum size of the page's values together. A page has at least one record.
            reverse: From the last key to the first.
            values: False leaves `value` empty, for callers that want only the keys.
        """

    @abstractmethod
    async def count(self, prefix: str = "") -> int:
        """The number of records whose keys begin with `prefix`."""

    @abstractmethod
    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        """Store all of `writes`, or none, and return when they are durable.

        Args:
            writes: No two have the same key. Empty if only `checks` matter.
            checks: Revisions that these keys must have (0: absent), though they are not written.

        Returns:
            The new revision of each write, in their order; 0 for deleting a key that does not
            exist.

        Raises:
            RevisionConflict: A condition does not hold; nothing was stored.
        """

    async def touch(
        self,
        key: str,  # noqa: ARG002  # for those that override it
        expires: int | None,  # noqa: ARG002
    ) -> bool:
        """Move the expiry of a record, and return when that is durable. It is no change.

        The record keeps its value, its times and its revision. A store that declares TOUCH
        overrides this.

        Args:
            key: The record's key.
            expires: When it expires, in microseconds; None: never.

        Returns:
            Whether there is such a record.
        """
        raise NotSupported(f"{type(self).__name__} does not declare TOUCH.")

    @abstractmethod
    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        """What changed after the revision `after`. Waits for a change if there is none yet.

        Each changed key appears once, in its latest state. A record that expires is a change, also
        while this waits: check the clock at least once a second, since clocks can be set. A page
        ends after `limit` changes, or after PAGE_BYTES as in `scan`.

        Args:
            after: The cursor. None: return at once, without changes, and with the current revision
                as the cursor. 0: every existing record counts as changed; this is never too old.
            since: The revision of the store when a walk from 0 began. The walk had seen no record
                before, so its cursor is valid while deletions after this revision are remembered.
            prefix: What the keys begin with.
            limit: Maximum number of changes.

        Raises:
            WatchExpired: `after` is older than the deletions that the store still remembers, or
                newer than the store.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish the writes under way, and release the store. Closing twice does nothing."""


_NAMESPACE = re.compile(r"(__)?[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_namespace(name: str, others: Iterable[str] = ()) -> str:
    """`name` as a plain str. InvalidNamespace unless it can be a namespace on every platform.

    Some filesystems do not distinguish `Notes` from `notes`, so a name that differs from one of
    `others` only in case is refused.
    """
    if not isinstance(name, str):
        raise InvalidNamespace(f"A namespace is a string; this one is of type {_type(name)}.")
    name = str.__str__(name)  # of an Enum with str, str() would be another name
    allowed = _NAMESPACE.fullmatch(name)
    if not allowed or name.endswith((".", "_encrypted_value")) or _DEVICE_NAME.fullmatch(name):
        raise InvalidNamespace(
            f"{_cut(name)} cannot be a namespace.",
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
                remedy=f"{other!r}, or a name that differs in more than case",
            )
    return name


def check_feature(store: RecordStore, feature: Feature, what: str) -> None:
    """Raise NotSupported unless `store` declares `feature`, which `what` needs."""
    if feature not in store.features:
        declared = ", ".join(sorted(has.name for has in store.features)) or "nothing"
        raise NotSupported(
            f"{what} needs a store that declares {feature.name}; {type(store).__name__} declares "
            f"{declared}."
        )


def expires_at(store: RecordStore, ttl: float | timedelta | None, clock: Clock) -> int | None:
    """When a record of `store` expires that is written now; `ttl` is in seconds or a timedelta."""
    if ttl is None:
        return None
    check_feature(store, Feature.TTL, "ttl=")
    if isinstance(ttl, bool) or not isinstance(ttl, int | float | timedelta):
        raise TypeError(f"ttl is a number of seconds or a timedelta, and not a {_type(ttl)}.")
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not seconds > 0:
        raise ValueError(f"ttl is {ttl!r}; it must be more than 0 seconds.")
    if seconds > _LAST_TIME / 1e6:
        raise ValueError(f"ttl is {ttl!r}; pass None for a record that never expires.")
    return min(clock() + math.ceil(seconds * 1e6), _LAST_TIME)


def check_key(key: str) -> str:
    """`key` as a plain str. InvalidKey unless it has 1 to 1024 UTF-8 bytes without NUL.

    A `Key` becomes the string that stands for it in a store.
    """
    if type(key) is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES and "\0" not in key:
        return key  # nearly every key; the checks below cost more
    if not isinstance(key, str):
        raise InvalidKey(f"A key is a string; this one is of type {_type(key)}.")
    if is_tuple(key) and not isinstance(key, Key):
        raise InvalidKey(
            "A key that is a plain string cannot begin with U+FDD0, which marks tuples.",
            remedy="Key(...) for a tuple",
        )
    key = str.__str__(key)  # of an Enum with str, str() would be another key
    if not key:
        raise InvalidKey("A key must have at least one character; this one is empty.")
    if "\0" in key:
        raise InvalidKey(f"{_cut(key)} contains a NUL character; keys must not.")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey(
            f"{_cut(key)} contains a lone surrogate, which UTF-8 cannot encode."
        ) from None
    if size > MAX_KEY_BYTES:
        raise InvalidKey(f"{_cut(key)} has {size} bytes; keys have at most {MAX_KEY_BYTES}.")
    return key


def stored_key(text: str) -> str:
    """Check a key as it is stored, in which a tuple is a string already."""
    return check_key(Key.of(text) if is_tuple(text) else text)


def shown_key(text: str) -> str:
    """A stored key as users get it: a tuple as a `Key`."""
    return Key.of(text) if is_tuple(text) else text


def _cut(text: str) -> str:
    """A text of any length, in quotes, as an error shows it."""
    return repr(text) if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]!r}…"


def _type(value: object) -> str:
    return type(value).__name__


def check_value(key: str, value: bytes, limit: int = MAX_VALUE_BYTES) -> None:
    """Raise ValueTooLarge when `value` is longer than `limit` bytes."""
    if len(value) > limit:
        raise ValueTooLarge(f"The record {key!r} has {len(value)} bytes; the maximum is {limit}.")
