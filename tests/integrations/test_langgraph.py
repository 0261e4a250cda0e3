"""LangGraph's checkpoints: its own conformance suite, and graphs that run on our storage."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from strongroom import StorageProvider, open_provider
from strongroom.errors import FabricError
from strongroom.integrations.langgraph import StrongroomSaver
from strongroom.testing import leak_scan
from support.profiles import PROFILES, settings


class State(TypedDict):
    words: Annotated[list[str], operator.add]
    asked: str


def builder() -> StateGraph[State]:
    def greet(state: State) -> dict[str, Any]:
        return {"words": ["hello"]}

    def ask(state: State) -> dict[str, Any]:
        return {"words": [interrupt("who?")], "asked": "yes"}

    graph = StateGraph(State)
    graph.add_node("greet", greet)
    graph.add_node("ask", ask)
    graph.add_edge(START, "greet")
    graph.add_edge("greet", "ask")
    graph.add_edge("ask", END)
    return graph


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


@pytest.mark.parametrize("profile", PROFILES)
async def test_the_conformance_suite_passes_whole(profile: str, tmp_path: Path) -> None:
    made = iter(range(1000))

    @checkpointer_test(name=profile)
    async def saver() -> AsyncIterator[StrongroomSaver]:
        provider = await open_provider(settings(profile, tmp_path / str(next(made))))
        yield await StrongroomSaver.open(provider)
        await provider.close()

    report = await validate(saver)
    assert [failure for result in report.results.values() for failure in result.failures] == []
    assert all(result.passed for result in report.results.values())


async def test_a_graph_goes_on_after_a_restart_at_its_interrupt(tmp_path: Path) -> None:
    chosen = settings("encrypted-sqlite", tmp_path)
    provider = await open_provider(chosen)
    graph = builder().compile(checkpointer=await StrongroomSaver.open(provider))
    paused = await graph.ainvoke({"words": [], "asked": ""}, thread("conversation-1"))
    assert paused["__interrupt__"][0].value == "who?"
    await provider.close()

    provider = await open_provider(chosen)
    graph = builder().compile(checkpointer=await StrongroomSaver.open(provider))
    done = await graph.ainvoke(Command(resume="Ada Lovelace"), thread("conversation-1"))
    assert done == {"words": ["hello", "Ada Lovelace"], "asked": "yes"}
    history = [state async for state in graph.aget_state_history(thread("conversation-1"))]
    assert [state.next for state in history] == [(), ("ask",), ("greet",), ("__start__",)]
    await provider.close()
    assert leak_scan(tmp_path / "data", ["Ada Lovelace", "conversation-1"]) == []


async def test_forks_are_as_with_langgraphs_own_saver(provider: StorageProvider) -> None:
    async def forked(saver: BaseCheckpointSaver[Any]) -> list[Any]:
        graph = builder().compile(checkpointer=saver)
        await graph.ainvoke({"words": [], "asked": ""}, thread("a"))
        [before] = [s async for s in graph.aget_state_history(thread("a")) if s.next == ("ask",)]
        await graph.ainvoke(Command(resume="Ada"), thread("a"))
        fork = await graph.aupdate_state(before.config, {"words": ["or"]})
        await graph.ainvoke(Command(resume="Grace"), fork)
        return [(s.next, s.values) async for s in graph.aget_state_history(thread("a"))]

    states = await forked(await StrongroomSaver.open(provider))
    assert states == await forked(InMemorySaver())
    words = [values["words"] for next_, values in states if not next_]
    assert sorted(words) == [["hello", "Ada"], ["hello", "or", "Grace"]]


async def test_a_value_that_does_not_change_is_stored_once(provider: StorageProvider) -> None:
    class Wide(TypedDict):
        large: str
        count: int

    graph = StateGraph(Wide)
    graph.add_node("count", lambda state: {"count": state["count"] + 1})
    graph.add_edge(START, "count")
    graph.add_conditional_edges("count", lambda s: END if s["count"] >= 10 else "count")
    run = graph.compile(checkpointer=await StrongroomSaver.open(provider))
    await run.ainvoke({"large": "x" * 200_000, "count": 0}, thread("a"))
    records = await provider.open("langgraph")
    page = await records.scan(limit=None, max_bytes=None)
    # As the input, as what the start writes, and once as the value of its channel.
    assert sum(len(record.value) for record in page.records) < 4 * 200_000


async def test_pruning_keeps_what_the_newest_checkpoint_needs(provider: StorageProvider) -> None:
    saver = await StrongroomSaver.open(provider)
    graph = builder().compile(checkpointer=saver)
    await graph.ainvoke({"words": [], "asked": ""}, thread("a"))
    await saver.aprune(["a"])
    assert len([state async for state in graph.aget_state_history(thread("a"))]) == 1
    done = await graph.ainvoke(Command(resume="Ada"), thread("a"))
    assert done["words"] == ["hello", "Ada"]


async def test_pruning_a_thread_that_runs_takes_no_value_from_it(
    provider: StorageProvider,
) -> None:
    saver = await StrongroomSaver.open(provider)

    async def write() -> list[Any]:
        config, version, found = {"configurable": {"thread_id": "a", "checkpoint_ns": ""}}, None, []
        for number in range(100):
            version = saver.get_next_version(version, None)
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"x": number}
            checkpoint["channel_versions"] = {"x": version}
            config = await saver.aput(config, checkpoint, {"step": number}, {"x": version})
            saved = await saver.aget(thread("a"))
            found.append(saved and saved["channel_values"])
        return found

    writing = asyncio.create_task(write())
    while not writing.done():
        await saver.aprune(["a"])
    assert await writing == [{"x": number} for number in range(100)]


async def test_deleting_a_thread_leaves_nothing_of_it(provider: StorageProvider) -> None:
    saver = await StrongroomSaver.open(provider)
    graph = builder().compile(checkpointer=saver)
    for name in ("a", "a/b", "b"):
        await graph.ainvoke({"words": [], "asked": ""}, thread(name))
    await saver.adelete_thread("a")
    await saver.adelete_thread("b")
    assert {tup.config["configurable"]["thread_id"] async for tup in saver.alist(None)} == {"a/b"}
    await saver.adelete_thread("a/b")
    assert await (await provider.open("langgraph")).count() == 0


async def test_threads_may_use_the_methods_without_a(provider: StorageProvider) -> None:
    saver = await StrongroomSaver.open(provider)
    graph = builder().compile(checkpointer=saver)
    paused = await asyncio.to_thread(graph.invoke, {"words": [], "asked": ""}, thread("a"))
    assert "__interrupt__" in paused
    done = await asyncio.to_thread(graph.invoke, Command(resume="Ada"), thread("a"))
    assert done["words"] == ["hello", "Ada"]
    states = await asyncio.to_thread(lambda: list(graph.get_state_history(thread("a"))))
    assert len(states) == 4
    with pytest.raises(FabricError, match="event loop"):
        graph.invoke({"words": [], "asked": ""}, thread("b"))


async def test_many_threads_at_once_keep_to_themselves(provider: StorageProvider) -> None:
    graph = builder().compile(checkpointer=await StrongroomSaver.open(provider))
    names = [f"thread {number}" for number in range(20)]
    await asyncio.gather(*(graph.ainvoke({"words": [n], "asked": ""}, thread(n)) for n in names))
    done = await asyncio.gather(*(graph.ainvoke(Command(resume=n), thread(n)) for n in names))
    assert [each["words"] for each in done] == [[n, "hello", n] for n in names]
