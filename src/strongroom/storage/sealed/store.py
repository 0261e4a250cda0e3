"""One sealed namespace: a `RecordStore` over another one, which holds tokens and sealed values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from strongroom.errors import ForeignStore, RevisionConflict, StoreUnavailable
from strongroom.storage.records import (
    PAGE_BYTES,
    PAGE_RECORDS,
    Changes,
    Clock,
    Feature,
    Page,
    Record,
    RecordChange,
    RecordStore,
    Write,
)
from strongroom.storage.sealed.keystore import Keystore
from strongroom.storage.sealed.names import Names
from strongroom.storage.sealed.ranges import Ranges, is_within
from strongroom.storage.sealed.seen import Seen
from strongroom.storage.sealed.values import State, Values, next_state

FIRST_READ = 16  # records that are read together while nothing is known of their sizes
REPEAT_SECONDS = 30.0


class SealedStore(RecordStore):
    """The records of one namespace, in clear to its callers only.

    A write is stored on the condition of the revision that it continues, and is repeated if another
    process was faster.
    """

    def __init__(
        self, inner: RecordStore, keystore: Keystore, namespace: str, owner: str, clock: Clock
    ) -> None:
        self.features = inner.features - {Feature.TOGETHER, Feature.TOUCH} | {Feature.ORDERED}
        self._inner = inner
        self._namespace = namespace
        self._keystore = keystore
        self._clock = clock
        self._names = Names(keystore.contents.names, keystore.space_id, namespace)
        self._values = Values(keystore, namespace, owner)
        self._seen = Seen(namespace)
        self._ranges = Ranges(inner, self._names)
        self._repeating = asyncio.Lock()

    def is_over(self, inner: RecordStore) -> bool:
        """Whether `inner` holds what is sealed here."""
        return inner is self._inner

    def __repr__(self) -> str:
        return f"<SealedStore over {self._inner!r}>"

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        moment = self._seen.moment()
        tokens = [self._names.token(key) for key in keys]
        records = await self._inner.read(tokens)
        return [
            await self._opened(key, token, record, moment)
            for key, token, record in zip(keys, tokens, records, strict=True)
        ]

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
        if limit is None and max_bytes is None:
            return await self._snapshot(prefix, after, reverse=reverse, values=values)
        keys, more = await self._ranges.keys(prefix, after, limit, reverse=reverse)
        page: list[Record] = []
        size = place = 0
        together = FIRST_READ
        while place < len(keys):
            for record in await self.read(keys[place : place + together]):
                place += 1
                if record is None:
                    continue  # deleted meanwhile
                size += len(record.value)
                if values and page and max_bytes is not None and size > max_bytes:
                    return Page(page, more=True)
                page.append(record if values else _without_value(record))
            if max_bytes is not None and size:
                together = max(1, min(PAGE_RECORDS, (max_bytes - size) * len(page) // size))
        return Page(page, more)

    async def count(self, prefix: str = "") -> int:
        return await (self._ranges.count(prefix) if prefix else self._inner.count())

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        revisions = await self._try(writes, checks or {})
        if revisions is None:
            async with self._repeating:  # one after the other, or they would overtake each other
                deadline = time.monotonic() + REPEAT_SECONDS
                while revisions is None:
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(
                            f"For {REPEAT_SECONDS:.0f} s others have written the same records of "
                            f"{self._namespace!r}, or the server says so. Nothing was stored.",
                            namespace=self._namespace,
                        )
                    revisions = await self._try(writes, checks or {})
        return revisions

    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        while True:
            moment = self._seen.moment()
            found = await self._inner.changes(after, since=since, limit=limit)
            changes = [
                RecordChange(
                    key,
                    change.revision,
                    await self._opened(key, change.key, change.record, moment),
                )
                for change in found.changes
                if (key := self._names.key(change.key)).startswith(prefix)
            ]
            if changes or after is None:
                return Changes(changes, found.cursor)
            after = found.cursor

    async def close(self) -> None:
        await self._inner.close()

    # --- inside ---------------------------------------------------------------------------------

    async def _opened(
        self, key: str, token: str, record: Record | None, moment: int
    ) -> Record | None:
        found = await self._open(key, token, record, moment) if record else None
        return found[0] if found else None

    async def _open(
        self, key: str, token: str, record: Record, moment: int
    ) -> tuple[Record, State] | None:
        """A record of the engine in clear; None if it has expired, whatever the engine says."""
        try:
            opened, state = self._values.open(key, token, record)
        except ForeignStore:
            await self._keystore.read()  # another process may have made a new data key
            opened, state = self._values.open(key, token, record)
        if opened.expires is not None and opened.expires <= self._clock():
            return None
        self._seen.check(key, state, moment)
        return opened, state

    async def _snapshot(
        self, prefix: str, after: str | None, *, reverse: bool, values: bool
    ) -> Page:
        """All records as of one moment."""
        moment = self._seen.moment()
        page = await self._inner.scan(limit=None, max_bytes=None)
        found = [
            await self._opened(self._names.key(record.key), record.key, record, moment)
            for record in page.records
        ]
        chosen = [
            record if values else _without_value(record)
            for record in found
            if record is not None and is_within(record.key, prefix, after, reverse=reverse)
        ]
        return Page(sorted(chosen, key=_key, reverse=reverse), more=False)

    async def _try(self, writes: Sequence[Write], checks: Mapping[str, int]) -> list[int] | None:
        """Store all writes; None if another process has written a record that one continues."""
        now = self._clock()
        continued = await self._continued(writes, now)
        sealed: list[Write] = []
        states: list[State | None] = []
        for write, (before, revision) in zip(writes, continued, strict=True):
            token = self._names.token(write.key)
            if write.value is None:
                states.append(None)
                sealed.append(Write(token, None, expect=write.expect))
                continue
            state = next_state(before, now, write.expires)
            states.append(state)
            value = self._values.seal(token, write.value, state, now)
            sealed.append(Write(token, value, write.expires, write.expect or revision))
        tokens = {self._names.token(key): expected for key, expected in checks.items()}
        try:
            revisions = await self._inner.apply(sealed, checks=tokens)
        except RevisionConflict as conflict:
            key = self._names.key(conflict.key)
            self._seen.doubt(key)
            if key in checks or any(w.key == key and w.expect is not None for w in writes):
                raise RevisionConflict(
                    key, expected=conflict.expected, found=conflict.found
                ) from None
            return None
        self._note(writes, states, revisions, now)
        return revisions

    def _note(
        self,
        writes: Sequence[Write],
        states: Sequence[State | None],
        revisions: Sequence[int],
        now: int,
    ) -> None:
        for write, state, revision in zip(writes, states, revisions, strict=True):
            if state is None:
                self._seen.note_deleted(write.key, now)
            else:
                self._ranges.add(write.key)
                self._seen.note(
                    write.key,
                    State(state.life, state.version, state.created, state.expires, revision),
                )

    async def _continued(self, writes: Sequence[Write], now: int) -> list[tuple[State | None, int]]:
        """What each write continues, and at which revision of the engine.

        What this process does not remember is read.
        """
        continued: dict[str, tuple[State | None, int]] = {}
        unsure: list[Write] = []
        for write in writes:
            continued[write.key] = (None, 0)
            if write.value is None or write.expect == 0:
                continue
            is_known, state = self._seen.current(write.key, now)
            revision = state.revision if state else 0
            if is_known and write.expect in {None, revision}:
                continued[write.key] = (state, revision)
            else:
                unsure.append(write)
        if unsure:
            moment = self._seen.moment()
            tokens = [self._names.token(write.key) for write in unsure]
            rows = await self._inner.read(tokens)
            for write, token, row in zip(unsure, tokens, rows, strict=True):
                found = await self._open(write.key, token, row, moment) if row else None
                revision = row.revision if row and found else 0
                if write.expect not in {None, revision}:
                    raise RevisionConflict(write.key, expected=write.expect or 0, found=revision)
                continued[write.key] = (found[1] if found else None, row.revision if row else 0)
        return [continued[write.key] for write in writes]


def _key(record: Record) -> str:
    return record.key


def _without_value(record: Record) -> Record:
    return Record(record.key, b"", record.revision, record.created, record.updated, record.expires)
