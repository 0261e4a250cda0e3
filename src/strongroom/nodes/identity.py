"""What a node stores about itself, so that it comes back as the same node after a restart."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from strongroom.errors import DirectoryError
from strongroom.messaging.address import check_node_id, new_id
from strongroom.storage.provider import NODE_META
from strongroom.version import __version__

if TYPE_CHECKING:
    from strongroom.storage.provider import StorageProvider
    from strongroom.storage.typed import KeyValueStore

FORMAT_VERSION = 1


class NodeMeta(BaseModel):
    """The node's id and history."""

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


class NodeStores:
    """The stores in which a node keeps its identity and its bindings."""

    def __init__(
        self, meta: KeyValueStore[NodeMeta], bindings: KeyValueStore[Binding], node: NodeMeta
    ) -> None:
        self._meta = meta
        self._bindings = bindings
        self.node = node

    @classmethod
    async def open(cls, provider: StorageProvider, node_id: str | None) -> NodeStores:
        """Open the stores. The node's id is the one given, else the stored one, else a new one.

        Raises:
            DirectoryError: The stores are those of a node with another id than the one given.
            IdentityInUse: Another process is running as this node.
        """
        node_id = await provider.claim(node_id and check_node_id(node_id))
        meta = await provider.own_store(NodeMeta, NODE_META)
        known = await meta.get("node")
        if known and node_id and known.node_id != node_id:
            raise DirectoryError(
                f"{provider!r} holds the data of the node {known.node_id!r}, and FAME_NODE_ID is "
                f"{node_id!r}.",
                remedy=f"that node's own directory, or strongroom store adopt {node_id}, which "
                "gives this one to it",
                path=provider.settings.directory,
            )
        bindings = await provider.own_store(Binding, "__binding_store")
        node = NodeMeta(
            node_id=check_node_id(node_id or (known.node_id if known else new_id())),
            created=known.created if known else datetime.now(UTC),
            software=f"strongroom {__version__}",
            last_clean_stop=known.last_clean_stop if known else None,
        )
        if node != known:
            await meta.set("node", node)
        return cls(meta, bindings, node)

    async def adopt(self, node_id: str) -> str:
        """Give the stores to a node with another id. Returns the id of the former one."""
        former, self.node.node_id = self.node.node_id, check_node_id(node_id)
        await self._meta.set("node", self.node)
        return former

    async def record_clean_stop(self) -> None:
        """Store the time at which the node stopped."""
        self.node.last_clean_stop = datetime.now(UTC)
        await self._meta.set("node", self.node)

    async def bindings(self) -> dict[str, Binding]:
        """The addresses that were bound when the node last ran."""
        return await self._bindings.list()

    async def add_binding(self, address: str, capabilities: list[str]) -> None:
        """Store an address, unless it is stored as it is now."""
        known = await self._bindings.get(address)
        if known is None or known.capabilities != capabilities:
            binding = Binding(address=address, capabilities=capabilities, bound=datetime.now(UTC))
            await self._bindings.set(address, binding)

    async def remove_binding(self, address: str) -> None:
        """Remove an address from the store."""
        await self._bindings.delete(address)
