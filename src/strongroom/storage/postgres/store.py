"""One namespace of a space: a `RecordStore` over the tables in schema.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from strongroom.errors import (
    EngineUnsuitable,
    StorageError,
    StoreClosed,
    StoreMissing,
    StoreRolledBack,
    StoreUnavailable,
    WatchExpired,
)
from strongroom.storage.postgres import schema
from strongroom.storage.postgres.connections import Connections
from strongroom.storage.postgres.hints import Hints
from strongroom.storage.postgres.identity import Identity
from strongroom.storage.postgres.reader import Reader, record_of
from strongroom.storage.postgres.writer import Namespace, Writer
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

_LAST = b"\xff"  # after every key, as UTF-8 has no such byte
_ALIVE = "(expires IS NULL OR expires > $4)"


class PostgresStore(RecordStore):
    """The records of one namespace. It is the listener of its own writer and of hints."""

    def __init__(
        self,
        connections: Connections,
        space: str,
        namespace: Namespace,
        clock: Clock,
        hints: Hints,
        *,
        features: frozenset[Feature],
        owner: Identity | None = None,
    ) -> None:
        self.features = features
        self.namespace = namespace
        self.is_closed = False
        self._connections = connections
        self._space = space
        self._clock = clock
        self._hints = hints
        self._owner = owner
        self._reader = Reader(connections, space, namespace.id, clock)
        self._writer = Writer(connections, space, namespace, clock, self)
        self._changed = asyncio.Event()
        self._changes = _changes_statement(space)
        self._sweep = f'SELECT "{space}".sweep_1($1, $2, $3)'
        hints.subscribe(namespace.id, self)

    def __repr__(self) -> str:
        return f"<PostgresStore {self.namespace.name!r} in {self._space!r}>"

    # --- the contract -------------------------------------------------------------------------

    async def read(self, keys: Sequence[str]) -> list[Record | None]:
        self._check()
        return await self._reader.read(keys)

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
        self._check()
        first, end = _range(prefix, after, reverse=reverse)
        statement = _scan_statement(self._space, reverse=reverse, values=values)
        rows: list[Any] = await self._connections.fetch(
            statement,
            self.namespace.id,
            first,
            end,
            self._clock(),
            None if limit is None else limit + 1,
            max_bytes,
        )
        records = [record_of(row) for row in rows if row[1] is not None]
        more = len(records) < len(rows) or (limit is not None and len(records) > limit)
        return Page(records[:limit], more)

    async def count(self, prefix: str = "") -> int:
        self._check()
        first, end = _range(prefix, None, reverse=False)
        [[number]] = await self._connections.fetch(
            f'SELECT count(*) FROM "{self._space}".record '
            f"WHERE ns = $1 AND key >= $2 AND key < $3 AND {_ALIVE}",
            self.namespace.id,
            first,
            end,
            self._clock(),
        )
        return int(number)

    async def apply(
        self, writes: Sequence[Write], *, checks: Mapping[str, int] | None = None
    ) -> list[int]:
        self._check()
        return await self._writer.submit(writes, checks)

    async def changes(
        self,
        after: int | None,
        *,
        since: int | None = None,
        prefix: str = "",
        limit: int = PAGE_RECORDS,
    ) -> Changes:
        while True:
            changed = self._changed
            self._check()
            start = 0 if after is None else after
            found = await self._changes_after(start, since or 0, prefix, limit)
            if after is None:
                return Changes([], found.cursor)
            if found.changes:
                return found
            after = found.cursor
            try:
                async with asyncio.timeout(self._hints.poll_seconds):
                    await changed.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._hints.unsubscribe(self.namespace.id)
            self._wake()
            await self._writer.finish()

    # --- for the writer, the hints and the provider ---------------------------------------------

    def on_commit(self) -> None:
        """(CommitListener) Wake those who wait here, and tell other processes."""
        self._wake()
        self._hints.tell(self.namespace.id, self.namespace.newest)

    def on_hint(self, revision: int) -> None:
        """(HintListener) Wake those who wait, unless it is what this process wrote itself."""
        if revision > self.namespace.newest:
            self._wake()

    def refusal(self, error: asyncpg.PostgresError) -> StorageError:
        """(CommitListener) Why the functions in the schema refused a batch."""
        name = self.namespace.name
        if error.sqlstate == schema.ROLLED_BACK:
            return StoreRolledBack(
                f"The server has lost writes to {name!r} that it had acknowledged: a standby took "
                "over that was behind, or a backup was restored. Nothing was stored.",
                remedy="find out what is missing, then restart the nodes",
                namespace=name,
            )
        if error.sqlstate == schema.WRONG_ISOLATION:
            return EngineUnsuitable(
                "The role's or database's default_transaction_isolation is not 'read committed'. "
                "Nothing was stored.",
                remedy="ALTER ROLE ... RESET default_transaction_isolation",
            )
        if error.sqlstate == schema.LOST:
            return self._owner.lose() if self._owner else self._missing()
        return StoreUnavailable(f"The server refused a batch: {error}. Nothing was stored.")

    async def sweep(self) -> None:
        """Turn expired records into deletions, and forget old ones."""
        await self._connections.fetch(
            self._sweep, self.namespace.id, self.namespace.epoch, self._clock()
        )

    # --- inside ---------------------------------------------------------------------------------

    def _check(self) -> None:
        self._connections.check()
        if self.is_closed:
            name = self.namespace.name
            raise StoreClosed(f"The store {name!r} was closed.", namespace=name)

    def _missing(self) -> StoreMissing:
        name = self.namespace.name
        return StoreMissing(
            f"The namespace {name!r} was dropped while it was open here. Nothing was stored.",
            remedy="open it again, which creates it anew",
            namespace=name,
        )

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _changes_after(self, after: int, since: int, prefix: str, limit: int) -> Changes:
        now = self._clock()
        first, end = _range(prefix, None, reverse=False)
        arguments = (self.namespace.id, first, end, now, limit + 1, PAGE_BYTES, after)
        rows: list[Any] = await self._connections.fetch(self._changes, *arguments)
        if rows and rows[0]["due"] is not None and rows[0]["due"] <= now:
            await self.sweep()
            rows = await self._connections.fetch(self._changes, *arguments)
        if not rows:
            raise self._missing()
        newest, forgotten = rows[0]["newest"], rows[0]["forgotten"]
        if after and not (forgotten <= max(after, since) and after <= newest):
            raise WatchExpired(
                f"The store does not remember what changed after revision {after}. It remembers "
                f"revisions {forgotten} to {newest}.",
                remedy="list the records, and watch from now on",
            )
        found: list[RecordChange] = []
        for row in rows:
            if row["key"] is None:  # there is no change
                break
            if len(found) == limit or row["is_too_much"]:
                return Changes(found, found[-1].revision)
            record = None if row["value"] is None else record_of(tuple(row)[:6])
            found.append(RecordChange(row["key"].decode(), row["revision"], record))
        return Changes(found, max(after, newest))


def _range(prefix: str, after: str | None, *, reverse: bool) -> tuple[bytes, bytes]:
    """The first key of a scan as bytes, and what all its keys are less than."""
    first = prefix.encode()
    end = first[:-1] + bytes([first[-1] + 1]) if first else _LAST
    if after is not None and reverse:
        return first, min(end, after.encode())
    if after is not None:
        return max(first, after.encode() + b"\0"), end
    return first, end


def _scan_statement(space: str, *, reverse: bool, values: bool) -> str:
    """A page ends where the sizes of its values exceed $6; of the row after it only the key comes.

    PostgreSQL knows the size of a long value without reading it.
    """
    value, order = ("value" if values else "''::bytea"), ("DESC" if reverse else "ASC")
    return f"""
        SELECT key, CASE WHEN place = 1 OR $6::bigint IS NULL OR total <= $6 THEN value END,
            revision, created, updated, expires
        FROM (
            SELECT *, row_number() OVER page AS place, sum(octet_length(value)) OVER page AS total
            FROM (
                SELECT key, {value} AS value, revision, created, updated, expires
                FROM "{space}".record WHERE ns = $1 AND key >= $2 AND key < $3 AND {_ALIVE}
                ORDER BY key {order} LIMIT $5
            ) AS found
            WINDOW page AS (ORDER BY key {order} ROWS UNBOUNDED PRECEDING)
        ) AS measured
        WHERE place = 1 OR $6 IS NULL OR total - octet_length(value) <= $6
        ORDER BY key {order}"""


def _changes_statement(space: str) -> str:
    """The head, and the changes after $7, all as of one moment. At least one row if it exists."""
    where = "ns = $1 AND revision > $7 AND key >= $2 AND key < $3"
    return f"""
        SELECT c.key, CASE WHEN NOT c.is_too_much THEN c.value END AS value, c.revision, c.created,
            c.updated, c.expires, c.is_too_much, n.revision AS newest, n.forgotten,
            (SELECT min(expires) FROM "{space}".record
                WHERE ns = $1 AND expires IS NOT NULL) AS due
        FROM "{space}".namespace AS n LEFT JOIN LATERAL (
            SELECT *, row_number() OVER page > 1
                AND sum(octet_length(value)) OVER page > $6 AS is_too_much
            FROM (
                SELECT * FROM (
                    SELECT key, value, revision, created, updated, expires
                    FROM "{space}".record WHERE {where} AND {_ALIVE} ORDER BY revision LIMIT $5
                ) AS present
                UNION ALL SELECT * FROM (
                    SELECT key, NULL::bytea, revision, NULL::bigint, NULL::bigint, NULL::bigint
                    FROM "{space}".tombstone AS t WHERE {where} AND NOT EXISTS (
                        SELECT 1 FROM "{space}".record AS r WHERE r.ns = t.ns AND r.key = t.key)
                    ORDER BY revision LIMIT $5
                ) AS gone
                ORDER BY revision LIMIT $5
            ) AS both_kinds
            WINDOW page AS (ORDER BY revision ROWS UNBOUNDED PRECEDING)
        ) AS c ON true
        WHERE n.id = $1 AND n.epoch >= 0
        ORDER BY c.revision"""
