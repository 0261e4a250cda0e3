"""Which node this process is, as a lease that the server's clock measures."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from strongroom.errors import IdentityInUse, IdentityLost, StorageError
from strongroom.storage.postgres.connections import Connections

LEASE_SECONDS = 15.0
RENEW_SECONDS = 5.0
LOOK_SECONDS = 1.0
GUEST_DAYS = 7
"""Days after which a guest that ended without a clean stop is removed."""

_CLAIM = """
WITH claimed AS (
    INSERT INTO "{s}".node AS n (id, epoch, instance, until, generation, guest)
        VALUES ($1, 1, $2, clock_timestamp() + $3 * interval '1 second', 0, $4)
    ON CONFLICT (id) DO UPDATE SET epoch = n.epoch + 1, instance = excluded.instance,
        until = excluded.until, guest = excluded.guest
    WHERE n.until <= clock_timestamp() OR n.instance = excluded.instance
    RETURNING epoch
), moved AS (
    UPDATE "{s}".namespace SET epoch = claimed.epoch FROM claimed
    WHERE owner = $1 AND namespace.epoch >= 0
)
SELECT (SELECT epoch FROM claimed), (SELECT until FROM "{s}".node WHERE id = $1)"""

_RENEW = """
UPDATE "{s}".node SET until = clock_timestamp() + $3 * interval '1 second'
WHERE id = $1 AND epoch = $2 RETURNING epoch"""

_RELEASE = """
UPDATE "{s}".node SET until = clock_timestamp() WHERE id = $1 AND epoch = $2"""

_LEAVE = """
WITH gone AS (DELETE FROM "{s}".node WHERE id = $1 AND epoch = $2 RETURNING id)
UPDATE "{s}".namespace SET name = NULL, epoch = -1 FROM gone WHERE owner = gone.id"""

# Messages that a guest has not delivered or handled may matter to somebody.
_REMOVE_OLD_GUESTS = """
WITH gone AS (
    DELETE FROM "{s}".node AS n
    WHERE guest AND until < clock_timestamp() - $1 * interval '1 day' AND NOT EXISTS (
        SELECT 1 FROM "{s}".namespace AS s JOIN "{s}".record AS r ON r.ns = s.id
        WHERE s.name IN (n.id || '/__delivery_inbox'::bytea, n.id || '/__delivery_outbox'::bytea))
    RETURNING id
)
UPDATE "{s}".namespace SET name = NULL, epoch = -1 FROM gone WHERE owner = gone.id"""

log = logging.getLogger(__name__)


class Identity:
    """A node's claim to its id. Nobody else can claim it while it is renewed.

    Each claim has a higher epoch. Every write to a namespace of the node's is stored on the
    condition of the epoch, so that a process that slept through its lease cannot write any more.
    """

    def __init__(self, connections: Connections, space: str, node_id: str | None) -> None:
        """Claim nothing yet. Without `node_id` this is a guest, whose data goes when it leaves."""
        self.name = node_id or secrets.token_hex(8)
        self.is_guest = node_id is None
        self.epoch = 0
        self.lost = asyncio.Event()
        self._connections = connections
        self._space = space
        self._id = self.name.encode()
        self._instance = secrets.token_bytes(16)
        self._renewing: asyncio.Task[None] | None = None

    async def claim(self) -> None:
        """Claim the id. While another process has it, wait for the end of its lease.

        Raises:
            IdentityInUse: The other process has renewed its lease.
        """
        await self._run(_REMOVE_OLD_GUESTS, GUEST_DAYS)
        held_until = None
        while True:
            [(epoch, until)] = await self._run(
                _CLAIM, self._id, self._instance, LEASE_SECONDS, self.is_guest
            )
            if epoch is not None:
                break
            if held_until is not None and until > held_until:
                raise IdentityInUse(
                    f"Another process is running as the node {self.name!r}.",
                    remedy="stop it, or give this node another FAME_NODE_ID",
                )
            held_until = until
            await asyncio.sleep(LOOK_SECONDS)
        self.epoch = epoch
        self._renewing = asyncio.create_task(self._renew(), name=f"lease of {self.name}")

    def lose(self) -> IdentityLost:
        """Note that another process has claimed the id. Returns the error for callers."""
        self.lost.set()
        return IdentityLost(
            f"Another process has claimed the node id {self.name!r}, as this one did not renew "
            f"its lease for {LEASE_SECONDS:g} seconds. Nothing was stored.",
            remedy="start this node again when the other one has ended",
        )

    async def release(self) -> None:
        """Let others claim the id at once. A guest leaves with its namespaces."""
        if self._renewing is None:
            return
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        await self._run(_LEAVE if self.is_guest else _RELEASE, self._id, self.epoch)

    async def _renew(self) -> None:
        while not self.lost.is_set():
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if not await self._run(_RENEW, self._id, self.epoch, LEASE_SECONDS):
                    log.error("%s", self.lose())
            except StorageError as error:
                log.warning("The lease of the node %r was not renewed: %s", self.name, error)

    async def _run(self, statement: str, *arguments: object) -> list[Any]:
        return await self._connections.fetch(statement.format(s=self._space), *arguments)
