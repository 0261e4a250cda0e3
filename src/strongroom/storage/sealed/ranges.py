"""Ranges of keys in a sealed namespace, whose engine knows no order of them.

All names are read, in whatever order the engine has, and the next ones of the range are kept for
the pages that follow. So memory is flat, and a long walk reads all names once for each KEPT.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import AsyncIterator

import msgspec

from strongroom.storage.records import RecordStore
from strongroom.storage.sealed.names import Names

KEPT = 65_536  # names
KEPT_SECONDS = 10.0
WALKS = 4
NAMES_AT_ONCE = 4096


class Walk(msgspec.Struct):
    """The names that come next in a walk, in ascending order also where it goes backwards."""

    prefix: str
    reverse: bool
    keys: list[str]
    more: bool
    """Whether there are names of the walk after these."""
    until: float

    def has_place(self, key: str) -> bool:
        """Whether `key` is between the names that are kept."""
        if not (self.keys and key.startswith(self.prefix)):
            return False
        return self.keys[0] <= key <= self.keys[-1]

    def after(self, key: str | None) -> list[str]:
        """The names after `key`, in the order of the walk."""
        if self.reverse:
            end = len(self.keys) if key is None else bisect.bisect_left(self.keys, key)
            return self.keys[:end][::-1]
        return self.keys[0 if key is None else bisect.bisect_right(self.keys, key) :]

    def add(self, key: str) -> None:
        """Keep a name that this process has just written."""
        place = bisect.bisect_left(self.keys, key)
        if self.has_place(key) and self.keys[place] != key:
            self.keys.insert(place, key)


class Ranges:
    """Finds the keys of scans."""

    def __init__(self, inner: RecordStore, names: Names) -> None:
        self._inner = inner
        self._names = names
        self._walks: list[Walk] = []

    async def keys(
        self, prefix: str, after: str | None, limit: int | None, *, reverse: bool
    ) -> tuple[list[str], bool]:
        """The next keys of a scan, and whether there are more. Arguments are as for `scan`.

        A page that goes on from another one sees what this process has added meanwhile, and what
        others have added for KEPT_SECONDS at most it does not.
        """
        walk = self._kept(prefix, after, limit, reverse=reverse)
        if walk is None:
            walk = await self._begin(prefix, after, limit, reverse=reverse)
        keys = walk.after(after)
        chosen = keys[:limit]
        return chosen, len(chosen) < len(keys) or walk.more

    def add(self, key: str) -> None:
        """Note that this process has written `key`."""
        for walk in self._walks:
            walk.add(key)

    async def count(self, prefix: str) -> int:
        """The number of keys that begin with `prefix`."""
        number = 0
        async for names in self._all_names():
            number += sum(name.startswith(prefix) for name in names)
        return number

    def _kept(
        self, prefix: str, after: str | None, limit: int | None, *, reverse: bool
    ) -> Walk | None:
        now = time.monotonic()
        self._walks = [walk for walk in self._walks if walk.until > now]
        for walk in self._walks:
            is_same = (walk.prefix, walk.reverse) == (prefix, reverse)
            if is_same and after is not None and walk.has_place(after):
                left = len(walk.after(after))
                if not walk.more or (limit is not None and left >= limit):
                    return walk
        return None

    async def _begin(
        self, prefix: str, after: str | None, limit: int | None, *, reverse: bool
    ) -> Walk:
        most = None if limit is None else max(KEPT, limit)
        keys: list[str] = []
        more = False
        async for names in self._all_names():
            keys += [name for name in names if is_within(name, prefix, after, reverse=reverse)]
            keys.sort()
            if most is not None and len(keys) > most:
                more = True
                keys = keys[-most:] if reverse else keys[:most]
        walk = Walk(prefix, reverse, keys, more, time.monotonic() + KEPT_SECONDS)
        self._walks = [*self._walks[1 - WALKS :], walk]
        return walk

    async def _all_names(self) -> AsyncIterator[list[str]]:
        after, more = None, True
        while more:
            page = await self._inner.scan(
                after=after, limit=NAMES_AT_ONCE, max_bytes=None, values=False
            )
            yield [self._names.key(record.key) for record in page.records]
            after, more = page.records[-1].key if page.records else None, page.more


def is_within(key: str, prefix: str, after: str | None, *, reverse: bool) -> bool:
    """Whether a scan with these arguments comes to `key`."""
    if not key.startswith(prefix):
        return False
    return after is None or (key < after if reverse else key > after)
