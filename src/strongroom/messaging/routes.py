"""Where a sentinel sends a message. Pure decisions: no links, no clock.

Each decision takes the same time for ten names and for ten thousand: all names are looked up, and
one of several receivers is picked by position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from strongroom.errors import NoRoute
from strongroom.messaging.address import Address
from strongroom.messaging.envelope import NackCode

K = TypeVar("K", bound=Hashable)


class ChildNames:
    """The names of one child: each of its addresses, with what the agent there can do.

    `able` has the addresses for each capability, and `characters` is the length of all names.
    """

    def __init__(self, system_id: str) -> None:
        self.system_id = system_id
        self.addresses: dict[str, dict[str, None]] = {}
        self.able: dict[str, set[str]] = {}
        self.characters = 0
        self.groups: set[_Group] = set()
        self.is_attached = False


class _Group:
    """Children that have one thing in common, the attached ones apart from those that are away."""

    def __init__(self) -> None:
        self._members: dict[bool, list[str]] = {True: [], False: []}
        self._places: dict[str, tuple[bool, int]] = {}
        self._reasons: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, child: ChildNames) -> None:
        """Add a child, or count one more reason for which it is here."""
        reasons = self._reasons[child.system_id] = self._reasons.get(child.system_id, 0) + 1
        if reasons == 1:
            self._append(child.system_id, is_attached=child.is_attached)
            child.groups.add(self)

    def remove(self, child: ChildNames) -> None:
        """Count one reason less, and remove the child with the last of them."""
        reasons = self._reasons.get(child.system_id, 0)
        if reasons > 1:
            self._reasons[child.system_id] = reasons - 1
        elif reasons == 1:
            del self._reasons[child.system_id]
            self._pop(child.system_id)
            child.groups.discard(self)

    def move(self, child: ChildNames) -> None:
        """Note that a child has come or gone."""
        self._pop(child.system_id)
        self._append(child.system_id, is_attached=child.is_attached)

    def from_position(self, number: int) -> Iterator[str]:
        """All members, attached ones first, beginning at a position that `number` decides."""
        for members in (self._members[True], self._members[False]):
            for place in range(len(members)):
                yield members[(number + place) % len(members)]

    def _append(self, system_id: str, *, is_attached: bool) -> None:
        members = self._members[is_attached]
        self._places[system_id] = is_attached, len(members)
        members.append(system_id)

    def _pop(self, system_id: str) -> None:
        is_attached, place = self._places.pop(system_id)
        members = self._members[is_attached]
        last = members.pop()
        if last != system_id:
            members[place] = last
            self._places[last] = is_attached, place


class Routes:
    """The names of all children of one sentinel.

    >>> routes = Routes("/hub")
    >>> routes.attach("agent-1")
    >>> routes.bind("agent-1", "storage@fame.fabric")
    >>> routes.find("storage@fame.fabric", None, "message-1")
    'agent-1'
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.children: dict[str, ChildNames] = {}
        self._owners: dict[str, dict[str, None]] = {}
        self._pools: dict[tuple[str, str], _Group] = {}
        self._able: dict[str, _Group] = {}

    def child(self, system_id: str) -> ChildNames:
        """The names of a child; none for a new one."""
        return self.children.setdefault(system_id, ChildNames(system_id))

    # --- changes ---

    def attach(self, system_id: str) -> None:
        """A child's link is up. It gets the addresses whose present owner is away."""
        child = self.child(system_id)
        child.is_attached = True
        for group in child.groups:
            group.move(child)
        for address in child.addresses:
            owners = self._owners.get(address, {})
            if system_id in owners and not self.children[next(iter(owners))].is_attached:
                self._prefer(address, system_id)

    def left(self, system_id: str) -> None:
        """A child's link is gone. Its names stay known; a child without names is forgotten."""
        child = self.child(system_id)
        child.is_attached = False
        for group in child.groups:
            group.move(child)
        for address in child.addresses:
            waiting = self._owners.get(address, {})
            heir = next((each for each in waiting if self.children[each].is_attached), None)
            if heir is not None and self.owner(address) == system_id:
                self._prefer(address, heir)
        if not child.addresses:
            del self.children[system_id]

    def bind(self, system_id: str, address: str) -> str | None:
        """Route `address` to a child.

        Returns:
            None; or, if another child that is attached has the address, that child's id. Then
            nothing changes. A pool has room for all.

        Raises:
            InvalidAddress: It is not an address.
        """
        parsed, child = Address.parse(address), self.child(system_id)
        owner = self.owner(address)
        if owner not in {None, system_id} and self.children[str(owner)].is_attached:
            return owner
        is_new = address not in child.addresses
        self._add_address(child, address)
        if not parsed.is_pool:
            self._prefer(address, system_id)
        elif is_new:
            self._pools.setdefault(_pool_key(parsed), _Group()).add(child)
        return None

    def unbind(self, system_id: str, address: str) -> None:
        """Stop routing `address` to a child. It need not have been bound."""
        child = self.child(system_id)
        self.withdraw(system_id, address, list(child.addresses.get(address, ())))
        if child.addresses.pop(address, None) is None:
            return
        child.characters -= len(address)
        owners = self._owners.get(address, {})
        owners.pop(system_id, None)
        if not owners:
            self._owners.pop(address, None)
        parsed = Address.parse(address)
        if parsed.is_pool:
            _remove(self._pools, _pool_key(parsed), child)

    def forget(self, system_id: str) -> None:
        """Drop a child that is away, with all its names."""
        for address in list(self.child(system_id).addresses):
            self.unbind(system_id, address)
        del self.children[system_id]

    def advertise(self, system_id: str, address: str, capabilities: Sequence[str]) -> None:
        """Add to what the agent at `address` on a child can do."""
        child = self.child(system_id)
        known = self._add_address(child, address)
        for capability in dict.fromkeys(capabilities):
            if capability not in known:
                known[capability] = None
                child.able.setdefault(capability, set()).add(address)
                child.characters += len(capability)
                self._able.setdefault(capability, _Group()).add(child)

    def withdraw(self, system_id: str, address: str, capabilities: Sequence[str]) -> None:
        """Remove from what the agent at `address` on a child can do."""
        child = self.child(system_id)
        known = child.addresses.get(address, {})
        for capability in dict.fromkeys(capabilities):
            if capability in known:
                del known[capability]
                child.able[capability].discard(address)
                if not child.able[capability]:
                    del child.able[capability]
                child.characters -= len(capability)
                _remove(self._able, capability, child)

    def _add_address(self, child: ChildNames, address: str) -> dict[str, None]:
        if address not in child.addresses:
            child.addresses[address] = {}
            child.characters += len(address)
        return child.addresses[address]

    def owner(self, address: str) -> str | None:
        """The id of the child that has an address, other than in a pool."""
        return next(iter(self._owners.get(address, ())), None)

    def _prefer(self, address: str, system_id: str) -> None:
        others = self._owners.get(address, {})
        others.pop(system_id, None)
        self._owners[address] = {system_id: None, **others}

    # --- decisions ---

    def find(
        self,
        to: str | None,
        capabilities: Sequence[str] | None,
        message_id: str,
        *,
        even_if_away: bool = False,
    ) -> str:
        """The id of the child to which a message goes.

        Raises:
            NoRoute: There is none, or its link is down (unless `even_if_away`); `code` says which.
            InvalidAddress: `to` is not an address.
        """
        system_id = (
            self._by_address(to, message_id)
            if to
            else self._by_capabilities(capabilities or (), message_id)
        )
        child = self.children.get(system_id or "")
        if child is None:
            raise NoRoute(f"Unroutable to {to}", code=NackCode.NO_ROUTE)
        if not (child.is_attached or even_if_away):
            raise NoRoute(
                f"The node of {to or capabilities} is away", code=NackCode.CHILD_UNREACHABLE
            )
        return child.system_id

    def _by_address(self, to: str, message_id: str) -> str | None:
        owner = self.owner(to)
        if owner is not None:
            return owner
        address = Address.parse(to)
        if address.host and not address.path:
            return self._by_pool(address, message_id)
        if address.path.startswith(self.path + "/"):
            return address.path[len(self.path) + 1 :].partition("/")[0]
        return None

    def _by_pool(self, address: Address, message_id: str) -> str | None:
        pools = [
            self._pools[key]
            for suffix in _suffixes(address.host)
            if (key := (address.participant, suffix)) in self._pools
        ]
        return self._pick(pools, message_id)

    def _by_capabilities(self, capabilities: Sequence[str], message_id: str) -> str | None:
        wanted = set(capabilities)
        groups = [self._able.get(capability) or _Group() for capability in wanted]
        if not groups:
            return None
        number, rarest = _number(message_id), min(groups, key=len)
        for system_id in rarest.from_position(number):
            able = self.children[system_id].able
            if set.intersection(*(able.get(capability, set()) for capability in wanted)):
                return system_id
        return None

    def _pick(self, groups: Iterable[_Group], message_id: str) -> str | None:
        number, away = _number(message_id), None
        for group in groups:
            system_id = next(group.from_position(number))
            if self.children[system_id].is_attached:
                return system_id
            away = away or system_id
        return away


def _remove(groups: dict[K, _Group], key: K, child: ChildNames) -> None:
    group = groups.get(key)
    if group is not None:
        group.remove(child)
        if not group:
            del groups[key]


def _pool_key(pool: Address) -> tuple[str, str]:
    return pool.participant, pool.host[2:]


def _suffixes(host: str) -> Iterator[str]:
    """The suffixes of a host by which pools know it: `*.fame.fabric` contains `fame.fabric` too."""
    while host:
        yield host
        host = host.partition(".")[2]


def _number(message_id: str) -> int:
    return int.from_bytes(hashlib.sha256(message_id.encode()).digest()[:8])
