"""The provider `postgres`: the nodes of a space share its namespaces in a PostgreSQL database."""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

import asyncpg

from strongroom.errors import (
    EngineUnreachable,
    EngineUnsuitable,
    FormatUnsupported,
    IdentityInUse,
    InvalidNamespace,
    ProfileMismatch,
    StorageError,
    StoreUnavailable,
)
from strongroom.settings import StorageSettings
from strongroom.storage.postgres import schema
from strongroom.storage.postgres.connections import Connections
from strongroom.storage.postgres.hints import Hints
from strongroom.storage.postgres.identity import Identity
from strongroom.storage.postgres.store import PostgresStore
from strongroom.storage.postgres.writer import Namespace
from strongroom.storage.provider import OWN_PREFIX, SHARED_PREFIX, StorageProvider
from strongroom.storage.records import Clock, Feature, check_namespace, system_clock

OLDEST_VERSION = 14
TICK_SECONDS = 60.0
DROPPED_AT_ONCE = 10_000  # records
CLOCK_SECONDS = 2.0
"""A difference between this machine's clock and the server's that is worth a warning."""

_SERVER = """
SELECT current_setting('server_version_num')::integer / 10000 AS version,
    pg_is_in_recovery() AS is_standby,
    current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on' AS is_durable,
    current_setting('synchronous_standby_names') <> '' AS has_standby,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS time,
    to_regclass('"{s}".space') IS NOT NULL AS has_space"""
_SPACE = """
SELECT format, sealed, EXISTS (
    SELECT 1 FROM pg_class JOIN pg_namespace AS s ON s.oid = relnamespace
    WHERE nspname = $1 AND relkind = 'r' AND relpersistence <> 'p') AS is_unlogged
FROM "{s}".space"""
_NAMES = """
SELECT name FROM "{s}".namespace WHERE name IS NOT NULL AND (owner IS NULL OR owner = $1)"""
_DROP = """
UPDATE "{s}".namespace SET name = NULL, epoch = -1 WHERE name = $1 AND epoch = $2"""
_EMPTY = """
WITH gone AS (DELETE FROM "{s}".{table} WHERE (ns, key) IN (
    SELECT ns, key FROM "{s}".{table}
    WHERE ns IN (SELECT id FROM "{s}".namespace WHERE name IS NULL) LIMIT $1) RETURNING 1)
SELECT count(*) FROM gone"""
_FORGET = """
WITH gone AS (DELETE FROM "{s}".namespace WHERE name IS NULL
    AND NOT EXISTS (SELECT 1 FROM "{s}".record WHERE ns = id)
    AND NOT EXISTS (SELECT 1 FROM "{s}".tombstone WHERE ns = id) RETURNING id)
DELETE FROM "{s}".writer WHERE ns IN (SELECT id FROM gone)"""

log = logging.getLogger(__name__)


class PostgresProvider(StorageProvider):
    """Keeps namespaces in one schema, the space. Every node of the space sees those of users.

    A node's own namespaces are stored under its id, and only the process that has claimed the id
    can write to them.
    """

    needs_url: ClassVar[bool] = True

    def __init__(self, settings: StorageSettings, clock: Clock = system_clock) -> None:
        super().__init__(settings, clock)
        self._space = settings.space
        self._connections = Connections(settings)
        self._hints = Hints(self._connections, settings.space)
        self._stores: dict[str, PostgresStore] = {}
        self._features = frozenset(Feature) - {Feature.TOGETHER, Feature.TOUCH}
        self._identity: Identity | None = None
        self._opening = asyncio.Lock()
        self._claiming = asyncio.Lock()
        self._is_closed = False
        self._ticking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the space {self._space}>"

    async def start(self) -> None:
        try:
            await self._check_server()
        except StoreUnavailable as error:
            await self.close()
            raise EngineUnreachable(
                f"The PostgreSQL server of FAME_STORAGE_URL cannot be used: {error.what} "
                f"{error.__cause__ or ''}".rstrip(),
                remedy="start it, or correct FAME_STORAGE_URL",
            ) from error
        except BaseException:
            await self.close()
            raise
        self._hints.start()
        self._ticking = asyncio.create_task(self._tick(), name=f"tick of {self._space}")

    # --- the contract -------------------------------------------------------------------------

    async def claim(self, node_id: str | None) -> str:
        async with self._claiming:
            if self._identity is None:
                identity = Identity(self._connections, self._space, node_id)
                await identity.claim()
                self._identity = identity
        if node_id not in {None, self._identity.name}:
            raise IdentityInUse(f"This provider serves the node {self._identity.name!r} already.")
        return self._identity.name

    async def until_lost(self) -> None:
        await self.claim(None)
        assert self._identity is not None
        await self._identity.lost.wait()
        raise self._identity.lose()

    async def open(self, namespace: str) -> PostgresStore:
        self._connections.check()
        async with self._opening:
            store = self._stores.get(namespace)
            if store is None or store.is_closed:
                store = self._stores[namespace] = await self._open(check_namespace(namespace))
        return store

    async def namespaces(self) -> list[str]:
        owner = self._identity.name if self._identity else ""
        rows = await self._fetch(_NAMES, owner.encode())
        return sorted(name.decode().rpartition("/")[2] for (name,) in rows)

    async def drop(self, namespace: str) -> None:
        namespace = check_namespace(namespace)
        name = await self._stored_name(namespace)
        async with self._opening:
            if store := self._stores.pop(namespace, None):
                await store.close()
            epoch = self._identity.epoch if self._identity and name != namespace else 0
            await self._fetch(_DROP, name.encode(), epoch)
        await self._empty_dropped()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        for store in self._stores.values():
            await store.close()
        await self._hints.close()
        try:
            if self._identity is not None:
                await self._identity.release()
                if self._identity.is_guest:
                    await self._empty_dropped()
        except StorageError as error:
            log.warning("The lease ends by itself: %s", error)
        finally:
            await self._connections.close()

    # --- inside ---------------------------------------------------------------------------------

    async def _fetch(
        self, statement: str, *arguments: object, **names: str
    ) -> list[asyncpg.Record]:
        return await self._connections.fetch(statement.format(s=self._space, **names), *arguments)

    async def _check_server(self) -> None:
        [server] = await self._fetch(_SERVER)
        if server["version"] < OLDEST_VERSION:
            raise EngineUnsuitable(
                f"The server is PostgreSQL {server['version']}.",
                remedy=f"PostgreSQL {OLDEST_VERSION} or newer",
            )
        if server["is_standby"]:
            raise EngineUnsuitable("The server is a standby.", remedy="the URL of the primary")
        if not server["has_space"]:
            await self._connections.run_script(schema.script(self._space, sealed=self.encrypts))
        [space] = await self._fetch(_SPACE, self._space)
        if space["format"] != schema.FORMAT:
            raise FormatUnsupported(
                f"The space {self._space!r} has the format {space['format']}.",
                remedy="a newer Strongroom",
            )
        if space["sealed"] != self.encrypts:
            kind = "sealed" if space["sealed"] else "not sealed"
            raise ProfileMismatch(
                f"The space {self._space!r} is {kind}.",
                remedy="the profile that made it, or another FAME_STORAGE_SPACE",
            )
        if not server["is_durable"] or space["is_unlogged"]:
            log.warning("The server's settings do not let writes survive a crash of its machine.")
            self._features -= {Feature.DURABLE}
        if not server["has_standby"]:
            log.info("There is no synchronous standby: a failover can lose acknowledged writes.")
        if (apart := abs(server["time"] - self.clock()) / 1e6) > CLOCK_SECONDS:
            log.warning("The clocks of this machine and of the server differ by %.1f s.", apart)

    async def _stored_name(self, namespace: str) -> str:
        """The name under which the space has a namespace: a node's own are under its id."""
        if namespace.startswith(OWN_PREFIX) and not namespace.startswith(SHARED_PREFIX):
            return f"{await self.claim(None)}/{namespace}"
        return namespace

    async def _open(self, namespace: str) -> PostgresStore:
        name = await self._stored_name(namespace)
        identity = self._identity if name != namespace else None
        epoch = identity.epoch if identity else 0
        try:
            [(number, revision)] = await self._fetch(
                'SELECT * FROM "{s}".open_1($1, $2, $3)',
                name.encode(),
                identity.name.encode() if identity else None,
                epoch,
            )
        except asyncpg.PostgresError as error:
            raise InvalidNamespace(
                f"{namespace!r} differs only in case from a namespace that exists.",
                remedy="the other name, or one that differs in more than case",
            ) from error
        return PostgresStore(
            self._connections,
            self._space,
            Namespace(namespace, number, epoch, revision),
            self.clock,
            self._hints,
            features=self._features,
            owner=identity,
        )

    async def _empty_dropped(self) -> None:
        """Delete what dropped namespaces hold, in steps, and then forget them."""
        for table in ("record", "tombstone"):
            while (await self._fetch(_EMPTY, DROPPED_AT_ONCE, table=table))[0][0]:
                pass
        await self._fetch(_FORGET)

    async def _tick(self) -> None:
        """Every minute: delete expired records and what was dropped."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                for store in list(self._stores.values()):
                    if not store.is_closed:
                        await store.sweep()
                await self._empty_dropped()
            except StorageError as error:
                log.warning("%s", error)


class SealedSpace(PostgresProvider):
    """A space whose names and values are sealed before they come here."""

    encrypts: ClassVar[bool] = True
