"""Agents: the classes that users derive from, call through, and serve."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Raw

from strongroom.agents.remote import Remote
from strongroom.agents.state import BaseAgentState, S, StateHolder, state_model
from strongroom.agents.tasks import PREFIX as TASK_PREFIX
from strongroom.agents.tasks import TaskMethods, start_request
from strongroom.agents.unit_of_work import UnitOfWork
from strongroom.errors import NotStarted, StrongroomError
from strongroom.messaging.address import Address, new_id
from strongroom.messaging.calls import TIMEOUT_SECONDS
from strongroom.messaging.operations import find_operation, operations_of, outcome
from strongroom.messaging.rpc import Target
from strongroom.messaging.values import check_depth
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.node import Node
from strongroom.nodes.process import run, run_until_stopped
from strongroom.nodes.service import snake_case
from strongroom.root_config import RootConfig
from strongroom.settings import secrets_taken_from
from strongroom.storage.provider import StorageProvider

log = logging.getLogger(__name__)

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

    @staticmethod
    def from_handler(handler: Callable[[Any, str | None], Any]) -> BaseAgent[Any]:
        """An agent whose tasks are done by a function of their payload and id.

        >>> async def greet(payload: Any, id: str | None) -> str:
        ...     return f"Hello, {payload}!"
        >>> address = await node.serve(Agent.from_handler(greet))
        >>> await Agent.remote_by_address(address).run_task("World")
        'Hello, World!'
        """

        class Handler(BaseAgent[Any]):
            async def run_task(self, payload: Any, id: str | None) -> Any:
                return await outcome(handler(payload, id))

        return Handler(new_id())

    @classmethod
    async def run_many(
        cls,
        targets: Iterable[tuple[str, Any]],
        *,
        fabric: Fabric | None = None,
        gather_exceptions: bool = True,
    ) -> list[tuple[str, Any]]:
        """Run a task at each of several agents, all at once.

        Args:
            targets: The address and the payload of each task.
            fabric: The fabric to call from, if not the current one.
            gather_exceptions: An error is a result too; if False, the first one is raised.

        Returns:
            The address and the result of each task, in the order of the targets.
        """

        async def run_one(address: str, payload: Any) -> Any:
            return await cls.remote_by_address(address, fabric=fabric).run_task(payload)

        tasks = [(str(address), payload) for address, payload in targets]
        results = await asyncio.gather(
            *(run_one(*task) for task in tasks), return_exceptions=gather_exceptions
        )
        return [(address, result) for (address, _), result in zip(tasks, results, strict=True)]

    @classmethod
    async def broadcast(
        cls, addresses: Iterable[str], payload: Any = None, **options: Any
    ) -> list[tuple[str, Any]]:
        """Run a task with one payload at several agents; see `run_many`."""
        return await cls.run_many([(address, payload) for address in addresses], **options)


class _Place(Generic[S]):
    """An agent as its node sees it (a `Resident`): its name and address, its node and its state.

    Apart from the agent itself, whose names are for its author.
    """

    def __init__(self, agent: BaseAgent[S]) -> None:
        self._agent = agent
        self.given_name: str | None = None
        self.address: str | None = None
        self.node: Node | None = None
        self.state: StateHolder[S] | None = None
        self.state_model: type[Any] | None = state_model(type(agent))
        self.state_namespace: str | None = None
        self.state_key = "state"
        self.state_factory: Callable[[], Any] | None = None
        self.turn = asyncio.Lock()
        """That of the one unit of work."""
        self._ending = AsyncExitStack()

    @property
    def name(self) -> str:
        return self.given_name or snake_case(type(self._agent).__name__)

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
            await self._agent.__prepare__(node, address, self._ending)
            await outcome(self._agent.start())
        except BaseException:
            await self._let_go()
            raise

    async def end(self) -> None:
        """Stop, and let go of the node."""
        try:
            await self._ending.aclose()
            await outcome(self._agent.stop())
        finally:
            await self._let_go()

    def _take_name(self, node: Node) -> None:
        if self.state_model is None:
            return
        name = self._agent.name
        if _with_state.setdefault(node, {}).setdefault(name, self) is not self:
            cls = type(self._agent).__name__
            raise StrongroomError(
                f"Two agents named {name!r} on one node would overwrite each other's state.",
                remedy=f'a name for each, as in {cls}("first") and {cls}("second")',
            )

    async def _let_go(self) -> None:
        await self._ending.aclose()
        names = _with_state.get(self.node, {}) if self.node is not None else {}
        for name in [name for name, place in names.items() if place is self]:
            del names[name]
        self.node = None
        self.state = None

    def invoke(self, method: str, params: Raw) -> Awaitable[bytes] | AsyncGenerator[bytes, None]:
        """Begin an operation."""
        operations = operations_of(type(self._agent))
        if method.startswith(TASK_PREFIX) and method not in operations:
            answer = start_request(self._agent, method, params)
            if answer is not None:
                return answer
        return find_operation(operations, method, self._agent.name).start(self._agent, params)

    async def receive(self, payload: Raw) -> None:
        """Take a plain message."""
        check_depth(payload)
        answer = await outcome(self._agent.on_message(msgspec.json.decode(payload)))
        if answer is not None and self.node is not None:
            await self.node.send(answer.envelope)


_with_state: WeakKeyDictionary[Node, dict[str, _Place[Any]]] = WeakKeyDictionary()
"""The agents on each node that keep a state, by their names."""


class BaseAgent(Agent, TaskMethods, Generic[S]):
    """The base of a user's agents.

    >>> class Greeter(BaseAgent):
    ...     @operation
    ...     async def greet(self, name: str) -> str:
    ...         return f"Hello, {name}!"

    `asyncio.run(Greeter().aserve("greeter@fame.fabric"))` serves it.

    Args:
        name: The agent's name, if not made from its class's.
        state_model: The model of its state, if the class does not say.
        state_namespace: Where its state is stored, if not in a namespace of its own.
        state_key: The state's key there.
        state_factory: Makes the first state, if not the model's defaults.
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

    def __init__(
        self,
        name: str | None = None,
        *,
        state_model: type[S] | None = None,
        state_namespace: str | None = None,
        state_key: str = "state",
        state_factory: Callable[[], S] | None = None,
    ) -> None:
        place = self.__place
        place.given_name = name
        place.state_model = state_model or place.state_model
        place.state_namespace = state_namespace
        place.state_key = state_key
        place.state_factory = state_factory

    def __repr__(self) -> str:
        where = f"at {self.address}" if self.__place.node else "not served"
        return f"<{type(self).__name__} {self.name!r}, {where}>"

    @property
    def name(self) -> str:
        """The agent's name: the one given, or its class's in lower case with underscores."""
        return self.__place.name

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
        """Called before the address is bound, when storage and fabric can be used.

        This and `stop` and `on_message` may also be plain functions.
        """

    async def stop(self) -> None:
        """Called before the node stops."""

    async def on_message(self, message: Any) -> Any:  # noqa: ARG002
        """Called with each plain message, the JSON that `Fabric.send_message` sent.

        Return None, or Naylence's `FameMessageResponse` with an envelope to be sent.
        """
        log.warning("%s got a message and has no on_message()", self.name)

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
            model = place.state_model
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
            place.state = StateHolder(
                model,
                place.state_namespace or f"__agent_{self.name}",
                place.state_key,
                place.state_factory or model,
                self.storage_provider,
            )
        return place.state

    # --- units of work ---

    def unit_of_work(self) -> UnitOfWork[S]:
        """Records, state and messages that are stored with this operation's answer, or not at all.

        >>> class Bank(BaseAgent):
        ...     @operation
        ...     async def deposit(self, amount: int) -> None:
        ...         async with self.unit_of_work() as work:
        ...             work.state.balance += amount
        ...             await work.send_message("log@fame.fabric", amount)

        They are stored when the operation has returned, in one commit, with at-least-once delivery
        together with the answer and the note that the request is handled. Then the messages are
        sent. If the operation raises, or a record that it has read was changed meanwhile
        (RevisionConflict), nothing of it is stored or sent.

        Raises:
            NotStarted: The agent is not served.
        """
        place = self.__place
        if place.node is None:
            raise NotStarted(
                f"{self.name} is not served, so it has no storage.",
                remedy="use a unit of work in operations",
            )
        holder = self._holder() if place.state_model is not None else None
        return UnitOfWork(place.node, place.turn, holder)

    # --- serving ---

    async def aserve(
        self,
        address: str,
        *,
        root_config: RootConfig = None,
        log_level: str | int | None = None,
    ) -> None:
        """Serve this agent at `address` until SIGTERM or SIGINT.

        It is on the current fabric, if there is one, and else on a node of its own.
        A StrongroomError ends the process with one line and the error's exit status.

        Args:
            address: The agent's address, or a name to be served at the node's own path.
            root_config: The new node's settings in Naylence's form; it can be a sentinel's.
            log_level: The level of the logger `strongroom`.
        """
        await run_until_stopped(self._served_at(address, root_config), log_level)

    def serve(
        self,
        address: str,
        *,
        root_config: RootConfig = None,
        log_level: str | int | None = None,
    ) -> asyncio.Task[None] | None:
        """Run an event loop, uvloop's if that is installed, and serve this agent in it.

        Within a running loop, serve it there, in the task that is returned.
        """
        serving = self.aserve(address, root_config=root_config, log_level=log_level)
        try:
            return asyncio.get_running_loop().create_task(serving)
        except RuntimeError:  # no loop is running
            return run(serving)

    @asynccontextmanager
    async def _served_at(self, address: str, root_config: RootConfig) -> AsyncIterator[Fabric]:
        entered = Fabric.get_or_create(root_config=root_config)
        async with entered as fabric:
            with secrets_taken_from(os.environ):  # before start(), which may run other programs
                bound = await fabric.serve(self, address)
                try:
                    yield fabric
                finally:
                    if fabric is not entered:  # it was there before, and stays
                        await fabric.unbind(bound)

    async def __prepare__(self, node: Node, address: str, ending: AsyncExitStack) -> None:
        """Open what a class needs besides its state, before `start()`; `ending` closes it."""

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
