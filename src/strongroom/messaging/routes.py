"""Where a sentinel sends a message. Pure decisions: no links, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from strongroom.errors import NoRoute
from strongroom.messaging.address import Address
from strongroom.messaging.envelope import NackCode


class ChildNames:
    """The names of one child: each of its addresses, with what the agent there can do."""

    def __init__(self, system_id: str) -> None:
        self.system_id = system_id
        self.addresses: dict[str, list[str]] = {}
        self.is_attached = False


class Routes:
    """The names of all children of one sentinel.

    >>> routes = Routes("/hub")
    >>> routes.bind("agent-1", "storage@fame.fabric")
    >>> routes.child("agent-1").is_attached = True
    >>> routes.find("storage@fame.fabric", None, "message-1")
    'agent-1'
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.children: dict[str, ChildNames] = {}
        self._owners: dict[str, str] = {}
        self._pools: dict[str, dict[str, None]] = {}

    def child(self, system_id: str) -> ChildNames:
        """The names of a child; none for a new one."""
        return self.children.setdefault(system_id, ChildNames(system_id))

    def bind(self, system_id: str, address: str) -> None:
        """Route `address` to a child. If another child binds it later, that one wins.

        Raises:
            InvalidAddress: It is not an address.
        """
        parsed = Address.parse(address)
        self.child(system_id).addresses.setdefault(address, [])
        if parsed.is_pool:
            self._pools.setdefault(address, {})[system_id] = None
        else:
            self._owners[address] = system_id

    def unbind(self, system_id: str, address: str) -> None:
        """Stop routing `address` to a child. It need not have been bound."""
        self.child(system_id).addresses.pop(address, None)
        if self._owners.get(address) == system_id:
            del self._owners[address]
        members = self._pools.get(address, {})
        members.pop(system_id, None)
        if not members:
            self._pools.pop(address, None)

    def advertise(self, system_id: str, address: str, capabilities: Sequence[str]) -> None:
        """Add to what the agent at `address` on a child can do."""
        known = self.child(system_id).addresses.setdefault(address, [])
        known.extend(name for name in capabilities if name not in known)

    def withdraw(self, system_id: str, address: str, capabilities: Sequence[str]) -> None:
        """Remove from what the agent at `address` on a child can do."""
        known = self.child(system_id).addresses.get(address, [])
        known[:] = [name for name in known if name not in capabilities]

    def left(self, system_id: str) -> None:
        """A child's link is gone. Its names stay known; a child without names is forgotten."""
        child = self.child(system_id)
        child.is_attached = False
        if not child.addresses:
            del self.children[system_id]

    def find(self, to: str | None, capabilities: Sequence[str] | None, message_id: str) -> str:
        """The id of the child to which a message goes.

        Raises:
            NoRoute: There is none, or its link is down; `code` says which.
            InvalidAddress: `to` is not an address.
        """
        system_id = (
            self._by_address(to, message_id)
            if to
            else self._by_capabilities(capabilities or (), message_id)
        )
        if system_id is None or system_id not in self.children:
            raise NoRoute(f"Unroutable to {to}", code=NackCode.NO_ROUTE)
        if not self.children[system_id].is_attached:
            raise NoRoute(
                f"The node of {to or capabilities} is away", code=NackCode.CHILD_UNREACHABLE
            )
        return system_id

    def _by_address(self, to: str, message_id: str) -> str | None:
        owner = self._owners.get(to)
        if owner is not None:
            return owner
        address = Address.parse(to)
        if address.host and not address.path:
            return self._by_pool(address, message_id)
        if address.path.startswith(self.path + "/"):
            return address.path[len(self.path) + 1 :].partition("/")[0]
        return None

    def _by_pool(self, address: Address, message_id: str) -> str | None:
        members: dict[str, None] = {}
        for pool, ids in self._pools.items():
            if in_pool(address, Address.parse(pool)):
                members.update(ids)
        return self._pick(members, message_id)

    def _by_capabilities(self, capabilities: Sequence[str], message_id: str) -> str | None:
        wanted = set(capabilities)
        able = (
            child.system_id
            for child in self.children.values()
            if any(wanted <= set(known) for known in child.addresses.values())
        )
        return self._pick(able, message_id) if wanted else None

    def _pick(self, members: Iterable[str], message_id: str) -> str | None:
        # Attached children come first, then the highest digest, as Naylence's sentinels choose.
        def rank(system_id: str) -> tuple[bool, bytes]:
            known = self.children.get(system_id)
            digest = hashlib.sha256(f"{system_id}:{message_id}".encode()).digest()
            return known is not None and known.is_attached, digest

        return max(members, key=rank, default=None)


def in_pool(address: Address, pool: Address) -> bool:
    """Whether `address` is in `pool`. `*.fame.fabric` contains `fame.fabric` too."""
    if not pool.is_pool or address.participant != pool.participant:
        return False
    suffix = pool.host[2:]
    return address.host in {suffix, pool.host} or address.host.endswith("." + suffix)
