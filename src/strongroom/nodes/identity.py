"""What a node remembers of itself, so that it comes back as the one that left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from strongroom import __version__
from strongroom.messaging.address import check_node_id, new_id
from strongroom.messaging.routes import Child
from strongroom.storage.provider import NODE_META

if TYPE_CHECKING:
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

FORMAT_VERSION = 1
ROUTE_LIFETIME = timedelta(days=7)


class NodeMeta(BaseModel):
    """Who the node is."""

    node_id: str
    created: datetime
    software: str
    format_version: int = FORMAT_VERSION
    last_clean_stop: datetime | None = None


class Binding(BaseModel):
    """An address that is bound on this node."""

    address: str
    capabilities: list[str] = Field(default_factory=list)
    bound: datetime


class Route(BaseModel):
    """What a sentinel knows of a child."""

    system_id: str
    path: str
    addresses: dict[str, list[str]]
    expires: datetime


class Housekeeping:
    """The stores in which a node keeps its identity, its bindings and, a sentinel, its routes."""

    def __init__(
        self,
        meta: KeyValueStore[NodeMeta],
        bindings: KeyValueStore[Binding],
        routes: KeyValueStore[Route] | None,
        node: NodeMeta,
    ) -> None:
        self._meta = meta
        self._bindings = bindings
        self._routes = routes
        self.node = node

    @classmethod
    async def open(
        cls, provider: StorageProvider, node_id: str | None, *, with_routes: bool = False
    ) -> Housekeeping:
        """Open the stores, and settle the node's id: the one given, else the stored, else a new."""
        meta = await provider.own_store(NodeMeta, NODE_META)
        bindings = await provider.own_store(Binding, "__binding_store")
        routes = await provider.own_store(Route, "__route_store") if with_routes else None
        known = await meta.get("node")
        node = NodeMeta(
            node_id=check_node_id(node_id or (known.node_id if known else new_id())),
            created=known.created if known else datetime.now(UTC),
            software=f"strongroom {__version__}",
            last_clean_stop=known.last_clean_stop if known else None,
        )
        if node != known:
            await meta.set("node", node)
        return cls(meta, bindings, routes, node)

    async def stopped(self) -> None:
        """Remember that the node stopped as it should."""
        self.node.last_clean_stop = datetime.now(UTC)
        await self._meta.set("node", self.node)

    async def bindings(self) -> dict[str, Binding]:
        """The addresses that were bound when the node last ran."""
        return await self._bindings.list()

    async def bound(self, address: str, capabilities: list[str]) -> None:
        """Remember an address, unless it is known as it is."""
        known = await self._bindings.get(address)
        if known is None or known.capabilities != capabilities:
            binding = Binding(address=address, capabilities=capabilities, bound=datetime.now(UTC))
            await self._bindings.set(address, binding)

    async def unbound(self, address: str) -> None:
        """Forget an address."""
        await self._bindings.delete(address)

    async def routes(self) -> list[Route]:
        """The children that the sentinel had, without those that stayed away too long."""
        assert self._routes is not None
        known = await self._routes.list()
        for system_id, route in list(known.items()):
            if route.expires < datetime.now(UTC):
                await self._routes.delete(system_id)
                del known[system_id]
        return list(known.values())

    async def remember_child(self, child: Child, path: str) -> None:
        """Keep what is known of a child now."""
        assert self._routes is not None
        route = Route(
            system_id=child.system_id,
            path=path,
            addresses=child.addresses,
            expires=datetime.now(UTC) + ROUTE_LIFETIME,
        )
        await self._routes.set(child.system_id, route)
