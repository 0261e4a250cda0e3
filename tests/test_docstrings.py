"""The examples in docstrings run, and what they show is what comes."""

import ast
import asyncio
import contextlib
import doctest
import importlib
import inspect
import io
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel

import strongroom
from strongroom import (
    BaseAgent,
    BaseAgentState,
    Fabric,
    KeyValueStore,
    MemoryProvider,
    Sentinel,
    Settings,
    StorageSettings,
    errors,
    operation,
    settings,
    storage,
    testing,
)
from strongroom.admin import records
from strongroom.admin.command import Administered
from strongroom.admin.socket import DirectoryClient

SOURCE = Path(strongroom.__file__).parent

# --- what the examples speak of -----------------------------------------------------------------


class Note(BaseModel):
    text: str


class Account(BaseModel):
    balance: int = 0


class Counter(BaseModel):
    n: int = 0


class Count(BaseAgentState):
    count: int = 0


class Record(BaseModel):
    value: str


class StorageAgent(BaseAgent[Count]):
    _store: KeyValueStore[Record]

    @property
    def capabilities(self) -> list[str]:
        return ["math.add"]

    async def start(self) -> None:
        self._store = await self.storage_provider.get_kv_store(Record, "records")

    @operation
    async def store_value(self, key: str, value: str) -> Record:
        await self._store.set(key, Record(value=value))
        return Record(value=value)

    @operation
    async def retrieve_value(self, key: str) -> Record | None:
        return await self._store.get(key)

    @operation
    async def add(self, a: int, b: int) -> int:
        return a + b


@contextlib.asynccontextmanager
async def stage(module: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """The names that examples use without saying where they come from."""
    provider = MemoryProvider()
    agent = StorageAgent()
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("2026-01-01", Note(text="Hello"))
    accounts = await provider.get_kv_store(Account, "accounts")
    await accounts.set_many({"a": Account(balance=10), "b": Account()})
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Sentinel(Settings(listener_port=0)))
        url = f"ws://127.0.0.1:{hub.port}{settings.ATTACH_PATH}"
        monkeypatch.setenv("FAME_DIRECT_ADMISSION_URL", url)
        node = await stack.enter_async_context(Fabric())
        await node.serve(agent, "storage@fame.fabric")
        public = {
            name: getattr(module, name)
            for module in (strongroom, errors, settings, storage, testing)
            for name in getattr(module, "__all__", dir(module))
        }
        yield {
            **public,
            **vars(importlib.import_module(module)),
            **{cls.__name__: cls for cls in (Account, Counter, Note, StorageAgent)},
            "AsyncIterator": AsyncIterator,
            "MyProvider": MemoryProvider,
            "Path": Path,
            "Random": Random,
            "agent": agent,
            "accounts": accounts,
            "asyncio": asyncio,
            "client": DirectoryClient(Administered(StorageSettings(), provider)),
            "counters": await provider.get_kv_store(Counter, "counters"),
            "cursor": 0,
            "handler": agent,
            "node": node,
            "notes": notes,
            "provider": provider,
            "records": records,
            "store": notes,
            "timedelta": timedelta,
            "value": Note(text="value"),
        }


# --- running them -------------------------------------------------------------------------------


def examples() -> Iterator[Any]:
    """One parameter for each docstring with an example, wherever in the source it is.

    Not those of the adapters, whose frameworks are not here: their page shows the same.
    """
    for file in sorted(SOURCE.rglob("*.py")):
        if file.parent.name == "integrations":
            continue
        module = ".".join(("strongroom", *file.relative_to(SOURCE).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                continue
            found = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            if found:
                name = f"{module}:{getattr(node, 'name', '')}"
                yield pytest.param(module.removesuffix(".__init__"), found, id=name)


async def run(example: doctest.Example, names: dict[str, Any]) -> str:
    """What a prompt would show; it may await, as at the prompt of `python -m asyncio`."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(example.source, "<example>", "single", flags=flags, dont_inherit=True)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            # On a thread, so that an example may run an event loop.
            result = await asyncio.to_thread(eval, code, names)
            if code.co_flags & inspect.CO_COROUTINE:
                await result
        except Exception as error:
            if example.exc_msg is None:
                raise
            return traceback.format_exception_only(error)[-1]
    return shown.getvalue()


@pytest.mark.parametrize(("module", "found"), list(examples()))
async def test_an_example_runs_and_shows_what_it_says(
    module: str, found: list[doctest.Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("notes.db").touch()
    monkeypatch.setattr(sys, "displayhook", sys.__displayhook__)
    async with stage(module, monkeypatch) as names:
        for example in found:
            shown = await run(example, names)
            want = example.exc_msg or example.want  # one that shows nothing only has to run
            assert not want or doctest.OutputChecker().check_output(want, shown, 0), (
                f"{example.source}gave {shown!r}, not {want!r}"
            )
