"""Agents: what a user writes, and where it is served from."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Generic, Self, cast

import msgspec
from msgspec import Raw

from strongroom.agents.operations import Operation, operations_of
from strongroom.agents.remote import Remote
from strongroom.agents.state import BaseAgentState, S, StateHolder, state_model
from strongroom.errors import StrongroomError, UnknownOperation
from strongroom.messaging.address import Address
from strongroom.messaging.calls import TIMEOUT
from strongroom.messaging.rpc import Target
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.node import Node
from strongroom.nodes.process import run, run_until_stopped
from strongroom.storage.provider import StorageProvider

AGENT_CAPABILITY = "fame.capability.agent"


class Agent:
    """Something that others call by its address. `BaseAgent` is the class to derive from."""

    @classmethod
    def remote(
        cls,
        address: str | None = None,
        *,
        capabilities: Sequence[str] | None = None,
        fabric: Fabric | None = None,
        timeout: float = TIMEOUT,
    ) -> Self:
        """An agent elsewhere, typed as this class: its operations return what they return there.

        >>> storage = StorageAgent.remote("storage@fame.fabric")
        >>> record = await storage.retrieve_value("key")

        Args:
            address: Where it is. Give this, or `capabilities`.
            capabilities: What it must be able to do; any agent that can is called.
            fabric: The fabric to call from, if not the current one.
            timeout: Seconds to wait for each result.
        """
        if (address is None) == (capabilities is None):
            raise ValueError("Give either an address or capabilities")
        if address is not None:
            Address.parse(address)
        target = Target(address and str(address), tuple(capabilities or ()))
        remote = Remote(target, _operations(cls), fabric=fabric, timeout=timeout)
        return cast("Self", remote)

    @classmethod
    def remote_by_address(
        cls, address: str, *, fabric: Fabric | None = None, timeout: float = TIMEOUT
    ) -> Any:
        """The agent at `address`; `Agent.remote_by_address` gives plain JSON values.

        >>> await Agent.remote_by_address("storage@fame.fabric").retrieve_value("key")
        """
        return cls.remote(address, fabric=fabric, timeout=timeout)

    @classmethod
    def remote_by_capabilities(
        cls, capabilities: Sequence[str], *, fabric: Fabric | None = None, timeout: float = TIMEOUT
    ) -> Any:
        """Any agent that has all of `capabilities`.

        >>> await Agent.remote_by_capabilities(["math.add"]).add(1, 2)
        """
        return cls.remote(capabilities=capabilities, fabric=fabric, timeout=timeout)


class BaseAgent(Agent, Generic[S]):
    """The base of a user's agents.

    >>> class Greeter(BaseAgent):
    ...     @operation
    ...     async def greet(self, name: str) -> str:
    ...         return f"Hello, {name}!"
    >>> asyncio.run(Greeter().aserve("greeter@fame.fabric"))
    """

    STATE_MODEL: ClassVar[type[BaseAgentState] | None] = None
    _node: Node | None = None
    _address: str | None = None
    _name: str | None = None
    _state: StateHolder[S] | None = None

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """The agent's name: the one given, or its class's in lower case with underscores."""
        return self._name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def address(self) -> str | None:
        """Where the agent is served, once it is."""
        return self._address

    @property
    def capabilities(self) -> Sequence[str]:
        """What the agent can do, by which callers may find it. Override to add to it."""
        return [AGENT_CAPABILITY]

    @property
    def storage_provider(self) -> StorageProvider:
        """The node's storage. None before the node has started; in `start()` it is there."""
        provider = self._node.storage if self._node is not None else None
        return cast("StorageProvider", provider)

    async def start(self) -> None:
        """Called when storage and fabric are there, before the address is bound."""

    async def stop(self) -> None:
        """Called before the node stops."""

    async def on_message(self, message: Any) -> None:
        """Called with a plain message, one that is no call."""

    # --- state ---

    @property
    def state(self) -> AbstractAsyncContextManager[S]:
        """The agent's state, for a change that is stored at the end of the block.

        >>> async with self.state as state:
        ...     state.count += 1
        """
        return self._holder().change()

    async def get_state(self) -> S:
        """A copy of the state."""
        return await self._holder().get()

    async def clear_state(self) -> None:
        """Set the state back to its defaults."""
        await self._holder().clear()

    def _holder(self) -> StateHolder[S]:
        if self._state is None:
            model = state_model(type(self))
            if model is None:
                raise StrongroomError(
                    f"{type(self).__name__} has no state.",
                    remedy=(
                        f"class {type(self).__name__}(BaseAgent[MyState]), where MyState is a "
                        "BaseAgentState"
                    ),
                )
            namespace = f"__agent_{self.name}"
            self._state = StateHolder(cast("type[S]", model), namespace, self._storage)
        return self._state

    def _storage(self) -> StorageProvider:
        if self._node is None:
            raise StrongroomError(f"{self.name} has no storage yet: its node has not started.")
        return self.storage_provider

    # --- serving ---

    async def aserve(self, address: str, *, log_level: str | int | None = None) -> None:
        """Serve this agent at `address` until SIGTERM or SIGINT.

        A StrongroomError ends the process with one line and the error's exit status.
        """
        await run_until_stopped(self._served_at(address), log_level)

    def serve(self, address: str, *, log_level: str | int | None = None) -> None:
        """Serve this agent at `address` in an event loop of its own: uvloop's, if installed."""
        run(self.aserve(address, log_level=log_level))

    @asynccontextmanager
    async def _served_at(self, address: str) -> AsyncIterator[None]:
        async with Fabric() as fabric:
            await fabric.serve(self, address)
            yield

    async def begin(self, node: Node, address: str) -> None:
        """(Resident) Take the node, and start."""
        self._node = node
        self._address = address
        await self.start()

    async def end(self) -> None:
        """(Resident) Stop, and let go of the node."""
        try:
            await self.stop()
        finally:
            self._node = None
            self._state = None

    def invoke(self, method: str, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """(Handler) Begin an operation."""
        operation = _operations(type(self)).get(method)
        if operation is None:
            raise UnknownOperation(f"Method not found: {self.name} has no operation {method!r}.")
        return operation.start(self, params)

    async def receive(self, payload: Raw) -> None:
        """(Handler) Take a plain message."""
        await self.on_message(msgspec.json.decode(payload))


_known: dict[type[Any], dict[str, Operation]] = {}


def _operations(cls: type[Any]) -> dict[str, Operation]:
    if cls not in _known:
        _known[cls] = operations_of(cls)
    return _known[cls]
