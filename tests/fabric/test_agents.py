"""What an agent's author relies on: state, names, lifetimes, and arguments in all forms."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from pydantic import BaseModel

from strongroom import (
    Agent,
    BaseAgent,
    BaseAgentState,
    Fabric,
    MemoryProvider,
    NotStarted,
    Settings,
    operation,
)
from strongroom.errors import InvalidArguments, OperationFailed, StrongroomError
from strongroom.messaging.arguments import pack, unpack
from strongroom.testing import serving
from support.fabrics import ADDRESS, Probe


class Point(BaseModel):
    x: int


class Tally(BaseAgentState):
    count: int = 0


class Counter(BaseAgent[Tally]):
    @operation
    async def increase(self, *, fail: bool = False) -> int:
        async with self.state as state:
            state.count += 1
            await asyncio.sleep(0)
            if fail:
                raise ValueError("not counted")
            return state.count


async def test_state_is_changed_by_one_at_a_time_and_kept() -> None:
    agent = Counter()
    async with Fabric(Settings()) as node:
        await node.serve(agent, ADDRESS)
        remote = Agent.remote_by_address(ADDRESS)
        assert sorted(await asyncio.gather(*(remote.increase() for _ in range(10)))) == [
            *range(1, 11)
        ]
        with pytest.raises(OperationFailed, match="not counted"):
            await remote.increase(fail=True)
        assert (await agent.get_state()).count == 10
        assert "__agent_counter" in await agent.storage_provider.namespaces()
        await agent.clear_state()
        assert (await agent.get_state()).count == 0


async def test_an_agent_without_a_model_of_state_says_how_to_have_one() -> None:
    with pytest.raises(StrongroomError, match="BaseAgent\\[MyState\\]"):
        Probe().state  # noqa: B018


async def test_state_before_the_agent_is_served_says_what_is_missing() -> None:
    with pytest.raises(NotStarted, match="counter is not served"):
        await Counter().get_state()


def test_an_agent_is_named_after_its_class_or_as_it_is_told() -> None:
    class StorageAgent(BaseAgent[Any]):
        pass

    assert StorageAgent().name == "storage_agent"
    assert StorageAgent("other").name == "other"


class Own(BaseAgent[Tally]):
    """An agent whose `__init__` does not call the one of BaseAgent."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._name = self._place = self._node = self._state = "names that a user may take"

    @operation
    async def advance(self) -> int:
        async with self.state as state:
            state.count += self.step
        return state.count


@dataclasses.dataclass
class Generated(BaseAgent[Any]):
    step: int

    @operation
    async def double(self) -> int:
        return self.step * 2


async def test_an_agent_may_have_an_init_that_does_not_call_ours() -> None:
    agents = Own(2), Own(step=3)
    assert [(agent.name, agent.address) for agent in agents] == [("own", None)] * 2
    none: object = agents[0].storage_provider  # which its type does not say
    assert none is None
    async with serving(agents[0]) as two, serving(agents[1]) as three:
        assert await two.advance() == 2
        assert (await three.advance(), await three.advance()) == (3, 6)
    async with serving(Generated(4)) as remote:
        assert await remote.double() == 8


async def test_agents_and_remotes_say_what_they_are() -> None:
    agent = Counter()
    assert repr(agent) == "<Counter 'counter', not served>"
    async with Fabric(Settings()) as node:
        await node.serve(agent, ADDRESS)
        assert repr(agent) == f"<Counter 'counter', at {ADDRESS}>"
        assert repr(Counter.remote(ADDRESS)) == f"<remote Counter: {ADDRESS}>"
        able = Agent.remote_by_capabilities(["a", "b"])
        assert repr(able) == "<remote Agent: Any agent with a, b>"
    assert repr(agent) == "<Counter 'counter', not served>"


class Many(BaseAgent):
    """Operations in every form that a class can give them."""

    @operation
    def plain(self, number: int) -> int:
        return number + 1

    @operation(name="wire-name")
    async def renamed(self, text: str) -> Point:
        return Point(x=len(text))

    @operation(name="items")
    async def stream(self, number: int) -> AsyncGenerator[Point, None]:
        for x in range(number):
            yield Point(x=x)

    @operation(streaming=True)
    def passed_on(self, number: int) -> AsyncIterator[Point]:
        return Many.remote(ADDRESS).stream(number)

    @operation(streaming=True)
    async def awaited(self, number: int) -> AsyncIterator[Point]:
        return self.stream(number)

    @operation(streaming=True)
    async def passed_on_untyped(self, number: int) -> Any:
        return Agent.remote_by_address(ADDRESS).items(number)


async def test_a_remote_does_what_its_type_promises() -> None:
    async with Fabric(Settings()) as node:
        await node.serve(Many(), ADDRESS)
        many = Many.remote(ADDRESS)
        assert await many.plain(1) == 2
        assert await asyncio.create_task(many.plain(2, _timeout=5)) == 3
        assert await many.renamed("four") == Point(x=4)
        assert await Agent.remote_by_address(ADDRESS)._call("wire-name", "ab") == {"x": 2}
        two = [Point(x=0), Point(x=1)]
        assert [point async for point in many.stream(2)] == two
        assert [point async for point in many.passed_on(2)] == two
        assert [point async for point in await many.awaited(2)] == two
        assert [point async for point in await many.passed_on_untyped(2)] == [{"x": 0}, {"x": 1}]


async def test_a_plain_operation_that_raises_is_answered() -> None:
    class Failing(BaseAgent):
        @operation
        def fail(self) -> None:
            raise ValueError("not today")

        @operation(streaming=True)
        def fail_as_stream(self) -> AsyncIterator[int]:
            raise ValueError("no stream either")

    async with serving(Failing()) as failing:
        with pytest.raises(OperationFailed, match="not today"):
            await failing.fail(_timeout=5)
        with pytest.raises(OperationFailed, match="no stream either"):
            await anext(aiter(failing.fail_as_stream(_timeout=5)))


async def test_a_stream_is_an_async_generator() -> None:
    async with Fabric(Settings()) as node:
        await node.serve(Many(), ADDRESS)
        stream = Many.remote(ADDRESS).stream(3)
        assert isinstance(stream, AsyncGenerator)
        assert await anext(stream) == Point(x=0)
        assert [point async for point in stream] == [Point(x=1), Point(x=2)]
        assert await anext(stream, None) is None
        async with aclosing(Many.remote(ADDRESS).stream(1_000_000)) as long:
            assert await anext(long) == Point(x=0)
        assert [point async for point in long] == []
        await Many.remote(ADDRESS).stream(1).aclose()


@pytest.fixture
async def counter() -> AsyncIterator[Counter]:
    async with serving(Counter()) as remote:
        yield remote


async def test_serving_works_in_a_fixture(counter: Counter) -> None:
    assert await counter.increase() == 1
    assert await Fabric.current().storage.namespaces()


async def test_serving_reads_no_variable_and_leaves_a_given_provider_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAME_DIRECT_ADMISSION_URL", "ws://127.0.0.1:1/nobody")
    monkeypatch.setenv("FAME_STORAGE_PROFILE", "no-such-profile")
    provider = MemoryProvider()
    for expected in (1, 2):
        async with serving(Counter(), provider) as counter:
            assert await counter.increase() == expected
    assert "__agent_counter" in await provider.namespaces()
    async with serving(Counter()) as counter:
        assert await counter.increase() == 1


@pytest.mark.parametrize(
    ("params", "args", "kwargs"),
    [
        (b'{"args":[1,2],"kwargs":{"c":3}}', [1, 2], {"c": 3}),
        (b'{"args":[1]}', [1], {}),
        (b'{"kwargs":{"a":1}}', [], {"a": 1}),
        (b'{"args":[],"kwargs":null}', [], {}),
        (b'{"a":1,"b":2}', [], {"a": 1, "b": 2}),
        (b"{}", [], {}),
        (b" [1,2]", [1, 2], {}),
    ],
)
def test_arguments_are_read_in_all_forms(
    params: bytes, args: list[int], kwargs: dict[str, int]
) -> None:
    positional, named = unpack(Raw(params))
    assert [int(bytes(each)) for each in positional] == args
    assert {key: int(bytes(each)) for key, each in named.items()} == kwargs


@pytest.mark.parametrize("params", [b"1", b"null", b'{"args":1}', b'{"kwargs":[1]}', b'"x"'])
def test_anything_else_is_no_arguments(params: bytes) -> None:
    with pytest.raises(InvalidArguments):
        unpack(Raw(params))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.lists(JSON, max_size=4), st.dictionaries(st.text(max_size=9), JSON, max_size=4))
def test_arguments_cross_the_wire_without_loss(args: list[Any], kwargs: dict[str, Any]) -> None:
    import msgspec

    positional, named = unpack(Raw(pack("op", tuple(args), kwargs)))
    assert [msgspec.json.decode(each) for each in positional] == args
    assert {key: msgspec.json.decode(each) for key, each in named.items()} == kwargs
