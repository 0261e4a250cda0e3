"""Agents: the classes that users derive from, call through, and serve."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Raw

from strongroom.agents.operations import operations_of
from strongroom.agents.remote import Remote
from strongroom.agents.state import BaseAgentState, S, StateHolder, state_model
from strongroom.errors import NotStarted, StrongroomError, UnknownOperation
from strongroom.messaging.address import Address
from strongroom.messaging.calls import TIMEOUT_SECONDS
from strongroom.messaging.rpc import Target
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.node import Node
from strongroom.nodes.process import run, run_until_stopped
from strongroom.settings import secrets_taken_from
from strongroom.storage.provider import StorageProvider

AGENT_CAPABILITY = "fame.capability.agent"


class Agent:
    """Something that others call by its address. Derive your own agents from `BaseAgent`."""

    @classmethod
    def remote(
        cls,
        address: str | None = None,
        *,
        capabilities: Sequence[str] | None = None,
        fabric: Fabric | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Self:
        """An agent elsewhere, typed as this class: its operations return what they return there.

        >>> storage = StorageAgent.remote("storage@fame.fabric", timeout=5)
        >>> await storage.retrieve_value("key")

        Args:
            address: Where it is. Give this, or `capabilities`.
            capabilities: What it must be able to do; any agent that can is called.
            fabric: The fabric to call from, if not the current one.
            timeout: Seconds to wait for each result, and for each item of a stream.

        Raises:
            InvalidAddress: `address` is not an address.
            NoFabric: No fabric is current here, and none was given.
            StrongroomError: The class has an operation that cannot be served.
        """
        if (address is None) == (capabilities is None):
            raise ValueError("Give either an address or capabilities")
        if address is not None:
            Address.parse(address)
        wanted = () if capabilities is None else checked_capabilities(capabilities)
        target = Target(address and str(address), wanted)
        return cast("Self", Remote(target, cls, fabric=fabric, timeout=timeout))

    @classmethod
    def remote_by_address(
        cls, address: str, *, fabric: Fabric | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> Any:
        """The agent at `address`, typed as the class on which you call this.

        On `Agent` itself, which has no operations, any name can be called and results are plain
        JSON values.

        >>> await Agent.remote_by_address("storage@fame.fabric").retrieve_value("key")
        """
        return cls.remote(address, fabric=fabric, timeout=timeout)

    @classmethod
    def remote_by_capabilities(
        cls,
        capabilities: Sequence[str],
        *,
        fabric: Fabric | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Any:
        """Any agent that has all of `capabilities`.

        >>> await Agent.remote_by_capabilities(["math.add"]).add(1, 2)
        3
        """
        return cls.remote(capabilities=capabilities, fabric=fabric, timeout=timeout)


class _Place(Generic[S]):
    """An agent as its node sees it (a `Resident`): its name and address, its node and its state.

    Apart from the agent itself, whose names are for its author.
    """

    def __init__(self, agent: BaseAgent[S]) -> None:
        self._agent = agent
        self.name: str | None = None
        self.address: str | None = None
        self.node: Node | None = None
        self.state: StateHolder[S] | None = None

    @property
    def capabilities(self) -> Sequence[str]:
        return self._agent.capabilities

    async def begin(self, node: Node, address: str) -> None:
        """Take the node, and start."""
        check_servable(type(self._agent))
        if self._agent.capabilities:
            checked_capabilities(self._agent.capabilities)
        self._take_name(node)
        self.node = node
        self.address = address
        try:
            await self._agent.start()
        except BaseException:
            self._let_go()
            raise

    async def end(self) -> None:
        """Stop, and let go of the node."""
        try:
            await self._agent.stop()
        finally:
            self._let_go()

    def _take_name(self, node: Node) -> None:
        if state_model(type(self._agent)) is None:
            return
        name = self._agent.name
        if _with_state.setdefault(node, {}).setdefault(name, self) is not self:
            cls = type(self._agent).__name__
            raise StrongroomError(
                f"Two agents named {name!r} on one node would overwrite each other's state.",
                remedy=f'a name for each, as in {cls}("first") and {cls}("second")',
            )

    def _let_go(self) -> None:
        names = _with_state.get(self.node, {}) if self.node is not None else {}
        for name in [name for name, place in names.items() if place is self]:
            del names[name]
        self.node = None
        self.state = None

    def invoke(self, method: str, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin an operation."""
        operation = operations_of(type(self._agent)).get(method)
        if operation is None:
            name = self._agent.name
            raise UnknownOperation(f"Method not found: {name} has no operation {method[:200]!r}.")
        return operation.start(self._agent, params)

    async def receive(self, payload: Raw) -> None:
        """Take a plain message."""
        await self._agent.on_message(msgspec.json.decode(payload))


_with_state: WeakKeyDictionary[Node, dict[str, _Place[Any]]] = WeakKeyDictionary()
"""The agents on each node that keep a state, by their names."""


class BaseAgent(Agent, Generic[S]):
    """The base of a user's agents.

    >>> class Greeter(BaseAgent):
    ...     @operation
    ...     async def greet(self, name: str) -> str:
    ...         return f"Hello, {name}!"

    `asyncio.run(Greeter().aserve("greeter@fame.fabric"))` serves it.

    Args:
        name: The agent's name, if not made from its class's.
    """

    STATE_MODEL: ClassVar[type[BaseAgentState] | None] = None
    __place: _Place[S]  # so named that no attribute of a subclass takes its place

    if TYPE_CHECKING:  # the same methods as Agent's: only the type is narrower

        @classmethod
        def remote_by_address(
            cls, address: str, *, fabric: Fabric | None = None, timeout: float = TIMEOUT_SECONDS
        ) -> Self: ...

        @classmethod
        def remote_by_capabilities(
            cls,
            capabilities: Sequence[str],
            *,
            fabric: Fabric | None = None,
            timeout: float = TIMEOUT_SECONDS,
        ) -> Self: ...

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Not in __init__, which a subclass may define without calling this one's.
        agent = super().__new__(cls)
        agent.__place = _Place(agent)
        return agent

    def __init__(self, name: str | None = None) -> None:
        self.__place.name = name

    def __repr__(self) -> str:
        where = f"at {self.address}" if self.__place.node else "not served"
        return f"<{type(self).__name__} {self.name!r}, {where}>"

    @property
    def name(self) -> str:
        """The agent's name: the one given, or its class's in lower case with underscores."""
        given = self.__place.name
        return given or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def address(self) -> str | None:
        """The address at which the agent is or was served last; None before."""
        return self.__place.address

    @property
    def capabilities(self) -> Sequence[str]:
        """What the agent can do, by which callers may find it. Override to add to it."""
        return [AGENT_CAPABILITY]

    @property
    def storage_provider(self) -> StorageProvider:
        """The node's storage, from `start()` on; None, whatever its type says, before and after."""
        node = self.__place.node
        return cast("StorageProvider", node.storage if node is not None else None)

    async def start(self) -> None:
        """Called before the address is bound, when storage and fabric can be used."""

    async def stop(self) -> None:
        """Called before the node stops."""

    async def on_message(self, message: Any) -> None:
        """Called with each plain message, the JSON that `Fabric.send_message` sent."""

    # --- state ---

    @property
    def state(self) -> AbstractAsyncContextManager[S]:
        """The agent's state, for a change that is stored at the end of the block.

        >>> async with agent.state as state:
        ...     state.count += 1

        Raises:
            NotStarted: The agent is not served.
        """
        return self._holder().change()

    async def get_state(self) -> S:
        """A copy of the state."""
        return await self._holder().get()

    async def clear_state(self) -> None:
        """Set the state back to its defaults."""
        await self._holder().clear()

    def _holder(self) -> StateHolder[S]:
        place = self.__place
        if place.state is None:
            model = state_model(type(self))
            if model is None:
                cls = type(self).__name__
                raise StrongroomError(
                    f"{cls} has no state.",
                    remedy=f"class {cls}(BaseAgent[MyState]), where MyState is a BaseAgentState",
                )
            if place.node is None:
                raise NotStarted(
                    f"{self.name} is not served, so it has no storage.",
                    remedy="use the state in start() and in operations",
                )
            namespace = f"__agent_{self.name}"
            place.state = StateHolder(cast("type[S]", model), namespace, self.storage_provider)
        return place.state

    # --- serving ---

    async def aserve(self, address: str, *, log_level: str | int | None = None) -> None:
        """Serve this agent at `address` until SIGTERM or SIGINT.

        A StrongroomError ends the process with one line and the error's exit status.
        """
        await run_until_stopped(self._served_at(address), log_level)

    def serve(self, address: str, *, log_level: str | int | None = None) -> None:
        """Run an event loop, uvloop's if that is installed, and serve this agent in it."""
        run(self.aserve(address, log_level=log_level))

    @asynccontextmanager
    async def _served_at(self, address: str) -> AsyncIterator[Fabric]:
        async with Fabric() as fabric:
            with secrets_taken_from(os.environ):  # before start(), which may run other programs
                await fabric.serve(self, address)
                yield fabric

    def __resident__(self) -> _Place[S]:
        """(Servable) What the node calls."""
        return self.__place


def check_servable(cls: type[BaseAgent[Any]]) -> None:
    """Refuse a class whose operations could not be called.

    Raises:
        StrongroomError: Says which operation, and what is wrong with it.
    """
    ours = {name for name in dir(BaseAgent) if not name.startswith("_")}
    for operation in operations_of(cls).values():
        if operation.attribute in ours:
            raise StrongroomError(
                f"{cls.__name__}.{operation.attribute}() cannot be an operation, since BaseAgent "
                "uses the name.",
                remedy=f'@operation(name="{operation.attribute}") on a method of another name',
            )


def checked_capabilities(capabilities: Any) -> tuple[str, ...]:
    """Capabilities, if they are a list of strings."""
    names = () if isinstance(capabilities, str) else tuple(capabilities)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"Capabilities are a list of strings, not {capabilities!r}")
    return names
