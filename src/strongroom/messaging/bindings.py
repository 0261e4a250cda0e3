"""The addresses that are bound on a node, and the handler that answers at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from strongroom.errors import FabricError
from strongroom.messaging.address import Address
from strongroom.messaging.envelope import Envelope
from strongroom.messaging.rpc import Handler


class Bindings:
    """What is on this node: its physical path, and its bound addresses.

    >>> bindings = Bindings("node-1")
    >>> bindings.path
    '/node-1'
    """

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.path = f"/{node_id}"
        self.awaited: set[str] = set()
        """Addresses that were bound here before a restart, and may be bound again."""
        self._handlers: dict[str, Handler] = {}
        self._named: dict[str, Handler] = {}
        """Handlers at this node's own path, which may change, by their names."""
        self._pools: list[Address] = []

    def __contains__(self, address: str | None) -> bool:
        return address is not None and self._at(address) is not None

    def __iter__(self) -> Iterator[str]:
        return chain(self._handlers, (f"{name}@{self.path}" for name in self._named))

    def add(self, address: Address, handler: Handler) -> None:
        """Let `handler` answer at `address`; in a pool, also at this node's own address in it.

        Raises:
            FabricError: Another handler answers there.
        """
        self.check_free(address, handler)
        if self.is_own(address):
            self._named[address.participant] = handler
            return
        self._handlers[str(address)] = handler
        if address.is_pool:
            self._handlers[str(self.instance(address))] = handler
            self._pools.append(address)

    def check_free(self, address: Address, handler: Handler) -> None:
        """Raise FabricError if another handler answers at `address`."""
        if self._at(str(address)) not in (None, handler):
            raise FabricError(
                f"{address} is bound on this node already.", remedy="another name or address"
            )

    def remove(self, address: Address) -> None:
        """Let nothing answer at `address`."""
        if self.is_own(address):
            self._named.pop(address.participant, None)
        self._handlers.pop(str(address), None)
        if address in self._pools:
            self._pools.remove(address)
            self._handlers.pop(str(self.instance(address)), None)

    def instance(self, address: Address) -> Address:
        """The address that only this node has: in a pool, this node's own one."""
        return address.member(self.node_id) if address.is_pool else address

    def is_own(self, address: Address) -> bool:
        """Whether `address` is at this node's own path, so that no sentinel needs to know it."""
        return not address.host and address.path == self.path

    def announced(self) -> list[tuple[Address, Handler]]:
        """The addresses that a sentinel must know: a pool, but not this node's address in it."""
        known = [(Address.parse(address), handler) for address, handler in self._handlers.items()]
        return [
            (address, handler)
            for address, handler in known
            if address in self._pools or not any(in_pool(address, pool) for pool in self._pools)
        ]

    def is_here(self, envelope: Envelope) -> bool:
        """Whether a message is for this node: for a bound address, or for the node's own path."""
        if self.find(envelope) is not None:
            return True
        to = envelope.to
        return to is not None and to.endswith(self.path) and Address.parse(to).path == self.path

    def find(self, envelope: Envelope) -> Handler | None:
        """The handler for a message, chosen by address or by capabilities."""
        if envelope.to is None:
            return self._with_capabilities(envelope.capabilities or ())
        handler = self._handlers.get(envelope.to)
        if handler is None and self._named:
            handler = self._at(envelope.to)
        if handler is None and self._pools:
            return self._in_pool(Address.parse(envelope.to))
        return handler

    def _at(self, address: str) -> Handler | None:
        handler = self._handlers.get(address)
        if handler is None and self._named:
            name, _, location = address.partition("@")
            return self._named.get(name) if location == self.path else None
        return handler

    def _with_capabilities(self, capabilities: Sequence[str]) -> Handler | None:
        wanted = set(capabilities)
        handlers = chain(self._handlers.values(), self._named.values())
        able = (handler for handler in handlers if wanted <= set(handler.capabilities))
        return next(able, None) if wanted else None

    def _in_pool(self, address: Address) -> Handler | None:
        return next((self._handlers[str(p)] for p in self._pools if in_pool(address, p)), None)


def in_pool(address: Address, pool: Address) -> bool:
    """Whether `address` is in `pool`. `*.fame.fabric` contains `fame.fabric` too."""
    if not pool.is_pool or address.participant != pool.participant:
        return False
    suffix = pool.host[2:]
    return address.host in {suffix, pool.host} or address.host.endswith("." + suffix)
