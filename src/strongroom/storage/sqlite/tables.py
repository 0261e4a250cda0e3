"""The tables in a store's file, and the statements over them.

`record` has an index on keys, for reads and scans, and one on revisions, for watching. A deletion
leaves a row in `tombstone`, for watching too. `head` identifies the file and its newest state.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from strongroom.storage.keys import prefix_end
from strongroom.storage.records import (
    PAGE_BYTES,
    PAGE_RECORDS,
    TOMBSTONE_AGE,
    TOMBSTONE_COUNT,
    Changes,
    Page,
    Record,
    RecordChange,
    Write,
)

VERSION = 1
INLINE_BYTES = 64 * 1024

_SCHEMA = """
CREATE TABLE record (
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    expires INTEGER,
    value BLOB NOT NULL
);
CREATE INDEX record_expires ON record (expires) WHERE expires IS NOT NULL;
CREATE TABLE tombstone (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    deleted INTEGER NOT NULL
);
CREATE TABLE head (
    namespace TEXT NOT NULL,
    file_id BLOB NOT NULL,
    revision INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,
    stamp BLOB NOT NULL,
    previous_stamp BLOB NOT NULL
);
"""

_ALIVE = "(expires IS NULL OR expires > :now)"
_COLUMNS = "key, value, revision, created, updated, expires"


class StoreHead(msgspec.Struct, frozen=True):
    """The state of a store. `forgotten` is the revision of the newest forgotten deletion."""

    namespace: str
    file_id: bytes
    revision: int
    forgotten: int
    stamp: bytes
    previous_stamp: bytes


def create(connection: apsw.Connection, namespace: str, file_id: bytes) -> None:
    """Create the tables of an empty store."""
    connection.execute(_SCHEMA).fetchall()
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("INSERT INTO head VALUES (?, ?, 0, 0, ?, ?)", (namespace, file_id, b"", b""))


def version(connection: apsw.Connection) -> int:
    """The version of the tables in the file."""
    return int(connection.execute("PRAGMA user_version").get)


def head(connection: apsw.Connection) -> StoreHead:
    """Read the head, with the newest revision of the store."""
    row: Any = connection.execute(
        """SELECT namespace, file_id,
            max(revision, (SELECT ifnull(max(revision), 0) FROM record),
                (SELECT ifnull(max(revision), 0) FROM tombstone)),
            forgotten, stamp, previous_stamp FROM head"""
    ).fetchall()[0]
    return StoreHead(*row)


def mark(connection: apsw.Connection, stamp: bytes, known: bytes, now: int) -> int:
    """Write a stamp that only this copy of the file has, and forget old deletions.

    The file keeps the `known` stamp beside it, which NODE_META remembers already: it is recognised
    whether or not NODE_META gets to know the new one. Returns the revision.
    """
    with connection:
        revision = head(connection).revision
        connection.execute(
            "UPDATE head SET revision = ?, stamp = ?, previous_stamp = ?", (revision, stamp, known)
        )
        _forget(connection, before=now - TOMBSTONE_AGE, keep=TOMBSTONE_COUNT)
    return revision


def compact(connection: apsw.Connection) -> None:
    """Write all records anew, without the pages that are free. It is one transaction."""
    connection.execute("VACUUM").fetchall()


def unreachable(connection: apsw.Connection, after: int) -> int:
    """How many entries of the index of revisions, after a revision, do not match their record.

    So it is if old pages were put among newer ones.
    """
    return int(
        connection.execute(
            """SELECT count(*) FROM record AS entry INDEXED BY sqlite_autoindex_record_2
            WHERE entry.revision > ? AND NOT EXISTS (
                SELECT 1 FROM record AS row NOT INDEXED
                WHERE row.rowid = entry.rowid AND row.revision = entry.revision AND EXISTS (
                    SELECT 1 FROM record AS name INDEXED BY sqlite_autoindex_record_1
                    WHERE name.key = row.key AND name.rowid = row.rowid))""",
            (after,),
        ).get
    )


def problems(connection: apsw.Connection) -> list[str]:
    """What is wrong with the pages and indexes of a store. Reads all of it."""
    messages = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
    return [] if messages == ["ok"] else messages


# --- reading ----------------------------------------------------------------------------------


READ_ON_THREAD = Record("", b"", 0, 0, 0)
"""What `read` returns for a record that is too long to be read on the event loop."""


def read(connection: apsw.Connection, key: str, now: int) -> Record | None:
    """Read one record on the event loop. `READ_ON_THREAD` if it is too long for that."""
    row: Any = connection.execute(_READ, {"key": key, "now": now, "most": INLINE_BYTES}).fetchone()
    if row is None:
        return None
    return READ_ON_THREAD if row[1] is None else Record(*row)


def read_long(connection: apsw.Connection, key: str, now: int) -> Record | None:
    """Read one record of any length, on a thread."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM record WHERE key = :key AND {_ALIVE}", {"key": key, "now": now}
    ).fetchone()
    return Record(*row) if row else None


_READ = f"""
SELECT key, CASE WHEN length(value) <= :most THEN value END,
    revision, created, updated, expires
FROM record WHERE key = :key AND {_ALIVE}"""


def scan(
    connection: apsw.Connection,
    prefix: str,
    *,
    now: int,
    after: str | None = None,
    limit: int | None = PAGE_RECORDS,
    max_bytes: int | None = PAGE_BYTES,
    reverse: bool = False,
    values: bool = True,
) -> Page:
    """Read one page of records, in key order."""
    where, bindings = _key_range(prefix, after, reverse=reverse)
    columns = _COLUMNS if values else _COLUMNS.replace("value", "x'' AS value")
    cursor = connection.execute(
        f"SELECT {columns} FROM record WHERE {where} AND {_ALIVE} "
        f"ORDER BY key {'DESC' if reverse else 'ASC'}",
        {**bindings, "now": now},
    )
    records: list[Record] = []
    size = 0
    for row in cursor:
        size += len(row[1])
        if records and (len(records) == limit or (max_bytes is not None and size > max_bytes)):
            cursor.close()
            return Page(records, more=True)
        records.append(Record(*row))
    return Page(records, more=False)


def last_row(connection: apsw.Connection) -> int:
    """The highest row number of a record. If the table is damaged, an index may still know it."""
    newest = "SELECT max(rowid) FROM record"
    try:
        return int(connection.execute(f"{newest} NOT INDEXED").get or 0)
    except apsw.Error:
        by_revision = f"{newest} INDEXED BY sqlite_autoindex_record_2"
        return int(connection.execute(by_revision).get or 0)


def sound_rows(connection: apsw.Connection, first: int, now: int) -> tuple[list[Record], int, bool]:
    """Some records from a row number on, without the help of an index.

    Where they cannot be read together, one row is tried, as a damaged page has only some of them.

    Returns:
        The records, the row number with which to continue, and whether one row cannot be read.
    """
    statement = f"SELECT rowid, {_COLUMNS} FROM record NOT INDEXED WHERE {_ALIVE} AND rowid "
    bindings = {"first": first, "now": now, "limit": PAGE_RECORDS}
    try:
        some = f"{statement} >= :first ORDER BY rowid LIMIT :limit"
        rows: Any = connection.execute(some, bindings).fetchall()
        after = rows[-1][0] + 1 if len(rows) == PAGE_RECORDS else sys.maxsize
    except apsw.Error:
        after = first + 1
        try:
            rows = connection.execute(f"{statement} = :first", bindings).fetchall()
        except apsw.Error:
            return [], after, True
    return [Record(*row[1:]) for row in rows], after, False


def count(connection: apsw.Connection, prefix: str, now: int) -> int:
    """The number of records whose keys begin with `prefix`."""
    where, bindings = _key_range(prefix, None, reverse=False)
    statement = f"SELECT count(*) FROM record WHERE {where} AND {_ALIVE}"
    return int(connection.execute(statement, {**bindings, "now": now}).get)


def changes(connection: apsw.Connection, after: int, prefix: str, limit: int, now: int) -> Changes:
    """What changed after a revision: each key once, in its latest state.

    An expired record that was not swept yet is left out; it becomes a deletion later.
    """
    where, bindings = _key_range(prefix, None, reverse=False)
    found: list[RecordChange] = []
    room = PAGE_BYTES
    with connection:  # so that rows and head are of one moment
        newest = head(connection).revision
        row: Any
        for row in connection.execute(
            _changes(where), {**bindings, "now": now, "after": after, "limit": limit + 1}
        ):
            room -= len(row[1] or b"")
            if found and (len(found) == limit or room < 0):
                return Changes(found, found[-1].revision)
            record = None if row[1] is None else Record(*row)
            found.append(RecordChange(row[0], row[2], record))
    return Changes(found, max(after, newest))


def _changes(where: str) -> str:
    return f"""
        SELECT * FROM (
            SELECT {_COLUMNS} FROM record WHERE revision > :after AND {where} AND {_ALIVE}
            ORDER BY revision LIMIT :limit)
        UNION ALL SELECT * FROM (
            SELECT key, NULL, revision, NULL, NULL, NULL FROM tombstone
            WHERE revision > :after AND {where}
                AND NOT EXISTS (SELECT 1 FROM record WHERE record.key = tombstone.key)
            ORDER BY revision LIMIT :limit)
        ORDER BY revision LIMIT :limit"""


def next_expiry(connection: apsw.Connection) -> int | None:
    """When the next record expires, in microseconds; None if no record does."""
    expires: int | None = connection.execute(
        "SELECT min(expires) FROM record WHERE expires IS NOT NULL"
    ).get
    return expires


def _key_range(prefix: str, after: str | None, *, reverse: bool) -> tuple[str, dict[str, str]]:
    conditions, bindings = ["TRUE"], {}
    if prefix:
        conditions.append("key >= :first")
        bindings["first"] = prefix
        if (end := prefix_end(prefix)) is not None:
            conditions.append("key < :end")
            bindings["end"] = end
    if after is not None:
        conditions.append("key < :cursor" if reverse else "key > :cursor")
        bindings["cursor"] = after
    return " AND ".join(conditions), bindings


# --- writing ----------------------------------------------------------------------------------


def found_at(connection: apsw.Connection, key: str, now: int) -> int:
    """The revision of a record; 0 if there is none."""
    statement = f"SELECT revision FROM record WHERE key = :key AND {_ALIVE}"
    return int(connection.execute(statement, {"key": key, "now": now}).get or 0)


def put(connection: apsw.Connection, writes: Sequence[Write], revision: int, now: int) -> None:
    """Store values in the order of `writes`, with the revisions that follow `revision`.

    One statement stores all of them, so that APSW waits for the interpreter's lock only once. It
    gets each row as one blob, which it splits at the first line feed and the first NUL.
    """
    if not writes:
        return
    rows = apsw.carray(tuple(map(_packed, writes)))
    connection.execute(_PUT, {"rows": rows, "revision": revision, "now": now})


def _packed(write: Write) -> bytes:
    if write.value is None:
        raise ValueError(f"{write.key!r} has no value to store.")
    return f"{'' if write.expires is None else write.expires}\n{write.key}\0".encode() + write.value


_PUT = """
INSERT INTO record (revision, key, created, updated, expires, value)
SELECT :revision + place, CAST(substr(row, feed + 1, nul - feed - 1) AS TEXT), :now, :now,
    CAST(nullif(substr(row, 1, feed - 1), x'') AS INTEGER), substr(row, nul + 1)
FROM (
    SELECT rowid AS place, value AS row, instr(value, x'0a') AS feed, instr(value, x'00') AS nul
    FROM carray(:rows)
)
WHERE TRUE  -- otherwise ON would be read as part of a join
ON CONFLICT (key) DO UPDATE SET
    revision = excluded.revision,
    created = CASE WHEN record.expires <= excluded.updated
        THEN excluded.created ELSE record.created END,
    updated = excluded.updated, expires = excluded.expires, value = excluded.value"""


def touch(connection: apsw.Connection, key: str, expires: int | None, now: int) -> bool:
    """Move the expiry of a record. Returns whether it exists."""
    connection.execute(
        f"UPDATE record SET expires = :expires WHERE key = :key AND {_ALIVE}",
        {"key": key, "expires": expires, "now": now},
    )
    return connection.changes() > 0


def delete(connection: apsw.Connection, key: str, revision: int, now: int) -> bool:
    """Delete a record, expired or not, and remember its deletion. Returns whether it existed."""
    connection.execute("DELETE FROM record WHERE key = ?", (key,))
    if not connection.changes():
        return False
    connection.execute(
        "INSERT OR REPLACE INTO tombstone (revision, key, deleted) VALUES (?, ?, ?)",
        (revision, key, now),
    )
    return True


def expired(connection: apsw.Connection, now: int, limit: int) -> list[str]:
    """Keys of expired records, earliest expiry first."""
    rows = connection.execute(
        "SELECT key FROM record WHERE expires <= ? ORDER BY expires LIMIT ?", (now, limit)
    )
    return [row[0] for row in rows]


def _forget(connection: apsw.Connection, *, before: int, keep: int) -> None:
    """Forget deletions before a time, and all but the newest `keep`."""
    edge = connection.execute(
        """SELECT max(
            ifnull((SELECT max(revision) FROM tombstone WHERE deleted < ?), 0),
            ifnull((SELECT revision FROM tombstone ORDER BY revision DESC LIMIT 1 OFFSET ?), 0))""",
        (before, keep),
    ).get
    if edge:
        connection.execute("DELETE FROM tombstone WHERE revision <= ?", (edge,))
        connection.execute("UPDATE head SET forgotten = ?", (edge,))
