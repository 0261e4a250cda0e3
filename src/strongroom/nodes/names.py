"""The names of a sentinel's children: which ones each may have, and the store that keeps them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import BaseModel

from strongroom.errors import InvalidAddress, RecordInvalid
from strongroom.messaging.address import Address, is_address
from strongroom.messaging.envelope import (
    MAX_CAPABILITIES,
    AddressBind,
    AddressUnbind,
    CapabilityAdvertise,
    CapabilityWithdraw,
)
from strongroom.messaging.routes import ChildNames, Routes
from strongroom.peers_log import peers_log

if TYPE_CHECKING:
    from strongroom.storage.typed import KeyValueStore

MAX_ADDRESSES = 1024
"""Addresses of one child."""
MAX_CHARACTERS = 256 * 1024
"""Characters of all names of one child: so much is stored again at each change."""
CHANGES_PER_SECOND = 100
CHANGES_AT_ONCE = 4096
"""Changes that a child may make at once, when it attaches or after a pause."""
MAX_AWAY = 16_384
"""Children that are remembered while they are away, besides ROUTE_LIFETIME."""
MAX_AWAY_CHARACTERS = 64 * 1024 * 1024
ROUTE_LIFETIME = timedelta(days=7)

log = peers_log(__name__)

NameFrame = AddressBind | AddressUnbind | CapabilityAdvertise | CapabilityWithdraw


class Route(BaseModel):
    """What a sentinel stores about a child."""

    system_id: str
    path: str
    addresses: dict[str, list[str]]
    expires: datetime


class _Record:
    """What is known of the record of one child: how new it is, and how often it may change."""

    def __init__(self, now: float) -> None:
        self.lock = asyncio.Lock()
        self.changes = 0
        self.stored = 0
        self._allowed = float(CHANGES_AT_ONCE)
        self._counted_at = now

    def may_change(self, now: float) -> bool:
        """Count a change, unless there were too many."""
        gained = (now - self._counted_at) * CHANGES_PER_SECOND
        self._allowed = min(CHANGES_AT_ONCE, self._allowed + gained)
        self._counted_at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


class Names:
    """The names of all children of a sentinel, which outlive their links and its restarts."""

    def __init__(self, path: str, store: KeyValueStore[Route]) -> None:
        self.routes = Routes(path)
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._records: dict[str, _Record] = {}
        self._away: dict[str, float] = {}
        self._away_characters = 0

    async def load(self) -> None:
        """Read what the last run stored. A record that cannot be used is left where it is."""
        for system_id in [key async for key in self._store.keys()]:  # noqa: SIM118 - not a dict
            try:
                route = await self._store.get(system_id)
                if route is None or route.expires < datetime.now(UTC):
                    await self._store.delete(system_id)
                    continue
                for address, capabilities in route.addresses.items():
                    self.routes.bind(system_id, address)
                    self.routes.advertise(system_id, address, capabilities)
            except (RecordInvalid, InvalidAddress) as error:
                log.warning("the stored names of %s are left aside: %s", system_id, error)
            self._is_away(system_id)

    def path_of(self, system_id: str) -> str:
        """The physical path of a child."""
        return f"{self.routes.path}/{system_id}"

    def leads_to(self, system_id: str, address: str) -> bool:
        """Whether `address` leads to a child: by its path, or because it has bound it."""
        place, path = address.partition("@")[2], self.path_of(system_id)
        is_below = place.startswith(path) and place[len(path) :][:1] in {"", "/"}
        return is_below or self.routes.owner(address) == system_id

    def change(self, system_id: str, frame: NameFrame) -> str | None:
        """Do what a child asks; returns why that is refused, None if it is not."""
        reason = self._refusal(system_id, frame)
        if reason is not None:
            return reason
        match frame:
            case AddressBind(address=address):
                owner = self.routes.bind(system_id, address)
                if owner is not None:
                    return f"{owner} has this address, and is attached"
            case AddressUnbind(address=address):
                self.routes.unbind(system_id, address)
            case CapabilityAdvertise(address=address, capabilities=capabilities):
                self.routes.advertise(system_id, address, capabilities)
            case CapabilityWithdraw(address=address, capabilities=capabilities):
                self.routes.withdraw(system_id, address, capabilities)
        self._record(system_id).changes += 1
        return None

    def _refusal(self, system_id: str, frame: NameFrame) -> str | None:
        if not self._record(system_id).may_change(self._loop.time()):
            return f"A node may change its names {CHANGES_PER_SECOND} times a second"
        if not is_address(frame.address):
            return "This is not an address"
        if Address.parse(frame.address).path and not self.leads_to(system_id, frame.address):
            return "An address with a path belongs to the node at that path"
        if isinstance(frame, AddressBind | CapabilityAdvertise):
            return self._excess(self.routes.child(system_id), frame)
        return None

    def _excess(self, child: ChildNames, frame: AddressBind | CapabilityAdvertise) -> str | None:
        known = child.addresses.get(frame.address)
        if known is None and len(child.addresses) >= MAX_ADDRESSES:
            return f"A node may have {MAX_ADDRESSES} addresses"
        named = set(frame.capabilities if isinstance(frame, CapabilityAdvertise) else ())
        named -= (known or {}).keys()
        if len(named) + len(known or ()) > MAX_CAPABILITIES:
            return f"An address may have {MAX_CAPABILITIES} capabilities"
        new = sum(map(len, named)) + (len(frame.address) if known is None else 0)
        if child.characters + new > MAX_CHARACTERS:
            return f"The names of a node may have {MAX_CHARACTERS} characters"
        return None

    def _record(self, system_id: str) -> _Record:
        record = self._records.get(system_id)
        if record is None:
            record = self._records[system_id] = _Record(self._loop.time())
        return record

    async def keep(self, system_id: str) -> None:
        """Return when the names of a child are stored as they are now, or later."""
        record = self._record(system_id)
        change = record.changes
        async with record.lock:  # all who wait here share the next write
            if record.stored >= change:
                return
            newest, child = record.changes, self.routes.children.get(system_id)
            if child is None:  # it has no names, and is gone
                await self._store.delete(system_id)
                return
            route = Route(
                system_id=system_id,
                path=self.path_of(system_id),
                addresses=stored(child),
                expires=datetime.now(UTC) + ROUTE_LIFETIME,
            )
            await self._store.set(system_id, route)
            record.stored = newest

    def attach(self, system_id: str) -> None:
        """A child is there."""
        if self._away.pop(system_id, None) is not None:
            self._away_characters -= self.routes.child(system_id).characters
        self.routes.attach(system_id)

    def left(self, system_id: str) -> None:
        """A child is gone, and may come back."""
        self.routes.left(system_id)
        self._records.pop(system_id, None)
        self._is_away(system_id)

    def _is_away(self, system_id: str) -> None:
        child = self.routes.children.get(system_id)
        if child is not None:  # it has names
            self._away[system_id] = self._loop.time()
            self._away_characters += child.characters

    async def forget_long_gone(self) -> None:
        """Forget those who left first, if that was long ago or there are too many."""
        oldest = self._loop.time() - ROUTE_LIFETIME.total_seconds()
        gone = []
        while self._away:
            system_id, left = next(iter(self._away.items()))
            too_many = len(self._away) > MAX_AWAY or self._away_characters > MAX_AWAY_CHARACTERS
            if left > oldest and not too_many:
                break
            del self._away[system_id]
            self._away_characters -= self.routes.child(system_id).characters
            self.routes.forget(system_id)
            gone.append(system_id)
        for system_id in gone:
            await self._store.delete(system_id)


def stored(child: ChildNames) -> dict[str, list[str]]:
    """The names of a child as they are stored and shown."""
    return {address: list(known) for address, known in child.addresses.items()}
