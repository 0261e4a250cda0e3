"""What an agent's author relies on: state, names, lifetimes, and arguments in all forms."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from strongroom import Agent, BaseAgent, BaseAgentState, Fabric, Settings, operation
from strongroom.agents.operations import pack, unpack
from strongroom.errors import InvalidArguments, OperationFailed, StrongroomError
from support.fabrics import ADDRESS, Probe


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


def test_an_agent_is_named_after_its_class_or_as_it_is_told() -> None:
    class StorageAgent(BaseAgent[Any]):
        pass

    assert StorageAgent().name == "storage_agent"
    assert StorageAgent("other").name == "other"


def test_keywords_of_other_runtimes_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="root_config"):
        Probe().aserve(ADDRESS, root_config={})  # type: ignore[call-arg, unused-coroutine]


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

    positional, named = unpack(Raw(pack(tuple(args), kwargs)))
    assert [msgspec.json.decode(each) for each in positional] == args
    assert {key: msgspec.json.decode(each) for key, each in named.items()} == kwargs
