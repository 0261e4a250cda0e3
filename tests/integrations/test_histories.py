"""Conversations of the OpenAI Agents SDK, Pydantic AI and LangChain on our storage."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import SessionSettings
from agents.memory import Session
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic_ai import Agent
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models.test import TestModel

from strongroom import StorageProvider, open_provider
from strongroom.errors import WrongMasterKey
from strongroom.integrations.history import History
from strongroom.integrations.langchain import StrongroomChatMessageHistory
from strongroom.integrations.openai_agents import StrongroomSession
from strongroom.integrations.pydantic_ai import MessageHistory
from support.profiles import settings


def item(text: str) -> Any:
    return {"role": "user", "content": text}


# --- the list below all of them -----------------------------------------------------------------


async def test_blocks_of_many_writers_are_not_torn(provider: StorageProvider) -> None:
    history = await History.open(provider, "a")
    blocks = [[f"{writer}-{n}".encode() for n in range(5)] for writer in range(20)]
    await asyncio.gather(*map(history.append, blocks))
    found = await history.last()
    assert sorted(found[start : start + 5] for start in range(0, 100, 5)) == sorted(blocks)


async def test_no_message_is_popped_twice(provider: StorageProvider) -> None:
    history = await History.open(provider, "a")
    await history.append([str(number).encode() for number in range(15)])
    popped = await asyncio.gather(*(history.pop() for _ in range(20)))
    assert sorted(int(each) for each in popped if each is not None) == list(range(15))
    assert await history.last() == []


async def test_names_keep_to_themselves(provider: StorageProvider) -> None:
    one, other = await History.open(provider, "a"), await History.open(provider, "a.b")
    await one.append([b"1"])
    await other.append([b"2", b"3"])
    await one.clear()
    assert (await one.last(), await other.last()) == ([], [b"2", b"3"])
    await one.append([])
    await one.append([b"4"])
    assert await one.last(5) == [b"4"]


# --- OpenAI Agents ------------------------------------------------------------------------------


async def test_a_session_keeps_its_items_in_order(provider: StorageProvider) -> None:
    session = await StrongroomSession.open(provider, "user-1")
    assert isinstance(session, Session)
    items = [item(f"number {n}") for n in range(12)]
    await session.add_items(items[:5])
    await session.add_items(items[5:])
    assert await session.get_items() == items
    assert await session.get_items(3) == items[-3:]
    assert await session.get_items(0) == []
    assert await session.pop_item() == items[-1]
    assert await session.get_items(100) == items[:-1]
    await session.clear_session()
    assert await session.pop_item() is None


async def test_a_sessions_settings_limit_what_is_read(provider: StorageProvider) -> None:
    limited = SessionSettings(limit=2)
    session = await StrongroomSession.open(provider, "a", session_settings=limited)
    await session.add_items([item(str(n)) for n in range(5)])
    assert await session.get_items() == [item("3"), item("4")]


async def test_a_wrong_key_is_an_error_and_no_empty_history(tmp_path: Path) -> None:
    chosen = settings("encrypted-sqlite", tmp_path)
    provider = await open_provider(chosen)
    await (await StrongroomSession.open(provider, "a")).add_items([item("kept")])
    await provider.close()
    with pytest.raises(WrongMasterKey):
        await open_provider(type(chosen)(**{**vars(chosen), "master_key": "22" * 32}))


# --- Pydantic AI --------------------------------------------------------------------------------


async def test_an_agent_goes_on_with_its_history(provider: StorageProvider) -> None:
    history = await MessageHistory.open(provider, "user-1")
    agent = Agent(TestModel())
    for turn in range(3):
        result = await agent.run(f"turn {turn}", message_history=await history.messages())
        await history.append(result.new_messages())
        assert await history.messages() == result.all_messages()
    kinds = [type(message) for message in await history.messages()]
    assert kinds == [ModelRequest, ModelResponse] * 3
    assert len(await history.messages(2)) == 2
    await history.clear()
    assert await history.messages() == []


# --- LangChain ----------------------------------------------------------------------------------


async def test_chat_messages_come_back_as_they_were(provider: StorageProvider) -> None:
    history = await StrongroomChatMessageHistory.open(provider, "user-1")
    messages = [
        HumanMessage("Hello", id="1"),
        AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "2"}]),
        ToolMessage("done", tool_call_id="2"),
    ]
    await history.aadd_messages(messages)
    assert await history.aget_messages() == messages
    await asyncio.to_thread(history.add_messages, [HumanMessage("again")])
    assert len(await asyncio.to_thread(lambda: history.messages)) == 4
    await history.aclear()
    assert await history.aget_messages() == []
