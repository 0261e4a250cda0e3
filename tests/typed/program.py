"""A program as a user writes it: checked strictly by mypy and pyright, and run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, assert_type

from pydantic import BaseModel, Field

from strongroom import (
    Agent,
    BaseAgent,
    BaseAgentState,
    CallTimeout,
    Change,
    Entry,
    Fabric,
    FameFabric,
    KeyExists,
    KeyMissing,
    KeyValueStore,
    MemoryProvider,
    NoRoute,
    OperationFailed,
    RevisionConflict,
    Settings,
    StorageProvider,
    StorageSettings,
    StrongroomError,
    open_provider,
    operation,
)
from strongroom.testing import serving

ADDRESS = "notes@fame.fabric"


class Note(BaseModel):
    text: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Usage(BaseAgentState):
    writes: int = 0


class NotesAgent(BaseAgent[Usage]):
    """Keeps notes; has an operation of each form."""

    _notes: KeyValueStore[Note]

    def __init__(self, greeting: str) -> None:
        super().__init__("notes")
        self.greeting = greeting

    async def start(self) -> None:
        self._notes = await self.storage_provider.get_kv_store(Note, "notes")

    @operation
    def greet(self, name: str, *, loudly: bool = False) -> str:
        text = f"{self.greeting}, {name}"
        return text.upper() if loudly else text

    @operation
    async def write(self, key: str, text: str) -> Note:
        note = Note(text=text)
        await self._notes.set(key, note)
        async with self.state as state:
            state.writes += 1
        return note

    @operation
    async def read(self, key: str) -> Note | None:
        return await self._notes.get(key)

    @operation(name="how-often")
    async def writes(self) -> int:
        return (await self.get_state()).writes

    @operation
    async def slow(self) -> None:
        await asyncio.sleep(60)

    @operation
    async def fail(self) -> None:
        raise ValueError("not today")

    @operation(streaming=True)
    async def all(self) -> AsyncIterator[tuple[str, Note]]:
        async for entry in self._notes.scan():
            yield entry.key, entry.value

    @operation
    async def copy(self, key: str, to: str) -> Note | None:
        note = await self.read(key)  # an operation of its own, called as a method
        return await self.write(to, note.text) if note else None

    async def on_message(self, message: Any) -> None:
        await self._notes.set("message", Note(text=str(message)))


class PoliteAgent(NotesAgent):
    @operation
    async def write(self, key: str, text: str) -> Note:
        return await super().write(key, f"{text}, please")


async def calls(notes: NotesAgent) -> None:
    assert_type(await notes.greet("Ada", loudly=True), str)
    note = await notes.write("a", "Hello")
    assert_type(note, Note)
    assert note.text == "Hello, please"
    found = await notes.read("a")
    assert_type(found, Note | None)
    assert found == note
    assert await notes.copy("a", to="b") is not None
    writes = await notes.writes(_timeout=5)
    assert_type(writes, int)
    assert writes == 2
    async for key, item in notes.all():
        assert_type(key, str)
        assert_type(item, Note)
    stream = notes.all()
    key, item = await anext(aiter(stream))
    assert (key, item) == ("a", note)
    tasks = [asyncio.create_task(notes.greet(name)) for name in ("Ada", "Bob")]
    assert await asyncio.gather(*tasks) == ["Hello, Ada", "Hello, Bob"]


async def failures(notes: NotesAgent) -> None:
    try:
        await notes.slow(_timeout=0.01)
    except CallTimeout as error:
        print(error.what)
    try:
        await notes.fail()
    except OperationFailed as error:
        assert error.data == {"type": "ValueError"}
    try:
        await Agent.remote_by_address("nobody@fame.fabric").read("a")
    except NoRoute as error:
        assert isinstance(error, StrongroomError)
        print(error.what, error.remedy)


async def storage(provider: StorageProvider) -> None:
    notes = await provider.get_kv_store(Note, "others")
    revision = await notes.create("a", Note(text="A"))
    entry = await notes.entry("a")
    assert_type(entry, Entry[Note] | None)
    assert entry is not None
    assert entry.revision == revision
    try:
        await notes.create("a", Note(text="B"))
    except KeyExists as error:
        assert error.found == revision
    try:
        await notes.set("a", Note(text="B"), if_revision=revision + 1)
    except RevisionConflict as error:
        assert error.expected == revision + 1
    try:
        await notes.update("b", Note(text="B"))
    except KeyMissing as error:
        print(error.what)
    async with aclosing(notes.watch(after=0)) as changes:
        async for change in changes:
            assert_type(change, Change[Note])
            break


async def main() -> None:
    async with Fabric(Settings()) as node:
        await node.serve(PoliteAgent("Hello"), ADDRESS)
        by_address = NotesAgent.remote_by_address(ADDRESS, timeout=20)
        assert_type(by_address, NotesAgent)
        await calls(by_address)
        await failures(NotesAgent.remote(ADDRESS))
        anything = await Agent.remote_by_address(ADDRESS).read("a")
        assert anything["text"] == "Hello, please"
        await storage(node.storage)
        await node.send_message(ADDRESS, {"hello": "world"})
    async with serving(NotesAgent("Hi"), MemoryProvider()) as notes:
        assert_type(notes, NotesAgent)
        assert await notes.greet("Ada") == "Hi, Ada"
    async with FameFabric.create(Settings(storage=StorageSettings(profile="memory"))) as node:
        assert_type(node.storage, StorageProvider)
    await (await open_provider(StorageSettings())).close()
    print("done")


if __name__ == "__main__":
    asyncio.run(main())
