"""The tables and functions of a space, which is one schema of a PostgreSQL database.

docs/engine-format.md explains them. Names are bytes, so that no collation or encoding matters. The
number in a function's name is its version: a newer program brings another beside it.
"""

from __future__ import annotations

from strongroom.storage.records import TOMBSTONE_AGE, TOMBSTONE_COUNT

FORMAT = 1

WRONG_ISOLATION = "SR002"
LOST = "SR001"
ROLLED_BACK = "SR003"
DIFFERS_IN_CASE = "SR004"
"""The codes of errors that the functions raise."""

SWEEP_RECORDS = 1000
_CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
WRITER_SILENCE = 3600 * 1_000_000  # microseconds after which a writer's row is removed

_TABLES = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(hashtextextended('strongroom {s}', 0));
CREATE SCHEMA IF NOT EXISTS {s};
CREATE TABLE IF NOT EXISTS {s}.space (
    format integer NOT NULL, id bytea NOT NULL, created bigint NOT NULL, sealed boolean NOT NULL);
CREATE TABLE IF NOT EXISTS {s}.node (
    id bytea PRIMARY KEY, epoch bigint NOT NULL, instance bytea NOT NULL,
    until timestamptz NOT NULL, generation bigint NOT NULL, guest boolean NOT NULL);
CREATE TABLE IF NOT EXISTS {s}.namespace (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name bytea UNIQUE,  -- NULL once it is dropped
    owner bytea,  -- the node; NULL if it is shared
    epoch bigint NOT NULL DEFAULT 0,  -- the owner's; -1 once it is dropped
    revision bigint NOT NULL DEFAULT 0,
    forgotten bigint NOT NULL DEFAULT 0) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS {s}.record (
    ns integer NOT NULL, key bytea NOT NULL, revision bigint NOT NULL,
    created bigint NOT NULL, updated bigint NOT NULL, expires bigint, value bytea NOT NULL,
    PRIMARY KEY (ns, key)) WITH (autovacuum_vacuum_scale_factor = 0.02);
-- Never compressed: the size of sealed values would tell something of their content.
ALTER TABLE {s}.record ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX IF NOT EXISTS record_revision ON {s}.record (ns, revision);
CREATE INDEX IF NOT EXISTS record_expires ON {s}.record (ns, expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS {s}.tombstone (
    ns integer NOT NULL, key bytea NOT NULL, revision bigint NOT NULL, deleted bigint NOT NULL,
    PRIMARY KEY (ns, key));
CREATE UNIQUE INDEX IF NOT EXISTS tombstone_revision ON {s}.tombstone (ns, revision);
CREATE TABLE IF NOT EXISTS {s}.writer (
    ns integer NOT NULL, id bytea NOT NULL, batch bigint NOT NULL, outcome bigint[] NOT NULL,
    updated bigint NOT NULL, PRIMARY KEY (ns, id)) WITH (fillfactor = 20);
INSERT INTO {s}.space
    SELECT {format}, decode(replace(gen_random_uuid()::text, '-', ''), 'hex'),
        {clock}, {sealed}
    WHERE NOT EXISTS (SELECT 1 FROM {s}.space);
"""

# What every batch begins with. The lock on the namespace's row lasts until the commit, so that
# revisions are given in the order of commits. A batch that was carried out already, and whose
# answer was lost, is not carried out again: its outcome is returned.
_BEGIN = """
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'not read committed' USING ERRCODE = 'SR002';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    UPDATE {s}.namespace SET revision = revision + total WHERE id = ns_ AND epoch = epoch_
        RETURNING revision - total INTO head;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another epoch' USING ERRCODE = 'SR001';
    END IF;
    IF head < least_ THEN
        RAISE EXCEPTION 'rolled back' USING ERRCODE = 'SR003';
    END IF;
    SELECT outcome INTO result FROM {s}.writer
        WHERE ns = ns_ AND id = writer_ AND batch >= batch_;
    IF FOUND THEN
        UPDATE {s}.namespace SET revision = head WHERE id = ns_;
        RETURN result;
    END IF;"""

_END = """
    INSERT INTO {s}.writer VALUES (ns_, writer_, batch_, result, {clock})
        ON CONFLICT (ns, id) DO UPDATE SET batch = excluded.batch, outcome = excluded.outcome,
            updated = excluded.updated;
    RETURN result;"""

_BATCH = "ns_ integer, epoch_ bigint, least_ bigint, writer_ bytea, batch_ bigint, now_ bigint"

_STORE = """
        ON CONFLICT (ns, key) DO UPDATE SET revision = excluded.revision,
            created = CASE WHEN record.expires <= now_ THEN now_ ELSE record.created END,
            updated = now_, expires = excluded.expires, value = excluded.value;"""

# Stores values, whatever was there. Returns the revision before the batch.
_PUT = """
CREATE OR REPLACE FUNCTION {s}.put_1(
    {batch}, total integer,
    places integer[], keys bytea[], expiries bigint[], contents bytea[]
) RETURNS bigint[] LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $put$
DECLARE
    head bigint;
    result bigint[];
BEGIN {begin}
    result := ARRAY[head];
    INSERT INTO {s}.record AS record (ns, key, revision, created, updated, expires, value)
        SELECT ns_, w.key, head + w.place, now_, now_, w.expires, w.content
        FROM unnest(places, keys, expiries, contents) AS w (place, key, expires, content) {store}
    {end}
END $put$;
"""

# Does everything else, in groups: a group of which one condition does not hold is left out as a
# whole. Returns the revision before the batch; for each condition the revision that was found; for
# each write whether it found something to do.
_APPLY = """
CREATE OR REPLACE FUNCTION {s}.apply_1(
    {batch}, total integer,
    guarded_groups integer[], guarded bytea[], expected bigint[],
    groups integer[], places integer[], keys bytea[], expiries bigint[], contents bytea[]
) RETURNS bigint[] LANGUAGE plpgsql AS $apply$
DECLARE
    head bigint;
    found_at bigint;
    refused integer[] := ARRAY[]::integer[];
    result bigint[];
    c record;
    w record;
BEGIN {begin}
    result := ARRAY[head];
    FOR c IN SELECT * FROM unnest(guarded_groups, guarded, expected) AS c (grp, key, revision) LOOP
        SELECT record.revision INTO found_at FROM {s}.record
            WHERE ns = ns_ AND key = c.key AND (expires IS NULL OR expires > now_);
        found_at := coalesce(found_at, 0);
        result := result || found_at;
        IF found_at <> c.revision THEN
            refused := refused || c.grp;
        END IF;
    END LOOP;
    FOR w IN SELECT * FROM unnest(groups, places, keys, expiries, contents)
            AS w (grp, place, key, expires, content) LOOP
        IF w.grp = ANY (refused) THEN
            result := result || 0;
            CONTINUE;
        END IF;
        IF w.content IS NULL THEN
            DELETE FROM {s}.record
                WHERE ns = ns_ AND key = w.key AND (expires IS NULL OR expires > now_);
            IF NOT FOUND THEN
                result := result || 0;
                CONTINUE;
            END IF;
            INSERT INTO {s}.tombstone VALUES (ns_, w.key, head + w.place, now_)
                ON CONFLICT (ns, key) DO UPDATE SET revision = excluded.revision, deleted = now_;
        ELSE
            INSERT INTO {s}.record AS record (ns, key, revision, created, updated, expires, value)
                VALUES (ns_, w.key, head + w.place, now_, now_, w.expires, w.content) {store}
        END IF;
        result := result || 1;
    END LOOP;
    {end}
END $apply$;
"""

# Deletes expired records, and forgets what is old: deletions, and writers that are gone.
_SWEEP = """
CREATE OR REPLACE FUNCTION {s}.sweep_1(ns_ integer, epoch_ bigint, now_ bigint)
RETURNS bigint LANGUAGE plpgsql AS $sweep$
DECLARE
    newest bigint;
    edge bigint;
    due record;
BEGIN
    SELECT revision INTO newest FROM {s}.namespace WHERE id = ns_ AND epoch = epoch_ FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    FOR due IN SELECT key FROM {s}.record WHERE ns = ns_ AND expires <= now_
            ORDER BY expires LIMIT {sweep_records} LOOP
        newest := newest + 1;
        DELETE FROM {s}.record WHERE ns = ns_ AND key = due.key;
        INSERT INTO {s}.tombstone VALUES (ns_, due.key, newest, now_)
            ON CONFLICT (ns, key) DO UPDATE SET revision = excluded.revision, deleted = now_;
    END LOOP;
    edge := greatest(
        (SELECT max(revision) FROM {s}.tombstone
            WHERE ns = ns_ AND deleted <= now_ - {tombstone_age}),
        (SELECT revision FROM {s}.tombstone WHERE ns = ns_
            ORDER BY revision DESC LIMIT 1 OFFSET {tombstone_count}));
    DELETE FROM {s}.tombstone WHERE ns = ns_ AND revision <= edge;
    DELETE FROM {s}.writer WHERE ns = ns_ AND updated < {clock} - {writer_silence};
    UPDATE {s}.namespace SET revision = newest, forgotten = greatest(forgotten, edge)
        WHERE id = ns_ AND (revision, forgotten) <> (newest, greatest(forgotten, edge));
    RETURN newest;
END $sweep$;
"""

# Finds a namespace, or creates it, under a lock on the space.
_OPEN = """
CREATE OR REPLACE FUNCTION {s}.open_1(name_ bytea, owner_ bytea, epoch_ bigint)
RETURNS TABLE (id_ integer, revision_ bigint) LANGUAGE plpgsql AS $open$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('strongroom {s}', 0));
    UPDATE {s}.namespace SET epoch = epoch_ WHERE name = name_ AND epoch < epoch_;
    RETURN QUERY SELECT id, revision FROM {s}.namespace WHERE name = name_;
    IF FOUND THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT 1 FROM {s}.namespace WHERE lower(encode(name, 'escape') COLLATE "C")
            = lower(encode(name_, 'escape') COLLATE "C")) THEN
        RAISE EXCEPTION 'differs only in case' USING ERRCODE = 'SR004';
    END IF;
    RETURN QUERY INSERT INTO {s}.namespace (name, owner, epoch) VALUES (name_, owner_, epoch_)
        RETURNING id, revision;
END $open$;
"""


def script(space: str, *, sealed: bool) -> str:
    """The statements that make a space, as one transaction. Run again, they change nothing.

    >>> print(script("strongroom", sealed=False))
    """
    fragments = {
        "s": f'"{space}"',
        "clock": _CLOCK,
        "format": FORMAT,
        "sealed": "true" if sealed else "false",
        "batch": _BATCH,
        "store": _STORE,
        "sweep_records": SWEEP_RECORDS,
        "tombstone_age": TOMBSTONE_AGE,
        "tombstone_count": TOMBSTONE_COUNT,
        "writer_silence": WRITER_SILENCE,
    }
    fragments |= {"begin": _BEGIN.format(**fragments), "end": _END.format(**fragments)}
    return "".join(each.format(**fragments) for each in (_TABLES, _PUT, _APPLY, _SWEEP, _OPEN))
