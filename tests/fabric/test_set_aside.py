"""Messages whose handler raises are tried again, and set aside when nothing helps."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from strongroom import Fabric, Settings, open_provider, operation
from strongroom.admin import delivery
from strongroom.admin.command import Administered, Command
from strongroom.admin.socket import Client, connect
from strongroom.errors import CallInterrupted, KeyMissing, NoRoute, NotSupported, OperationFailed
from strongroom.messaging.stored import (
    DEAD_LETTERS,
    INBOX,
    DeadLetter,
    ReceivedMessage,
    SentMessage,
)
from strongroom.nodes.inbox import KEEP_UNHANDLED
from strongroom.settings import StorageSettings
from strongroom.storage.memory import MemoryProvider
from strongroom.storage.provider import StorageProvider
from support.fabrics import ADDRESS, Probe, eventually, fabric, sentinel, url
from support.links import MemoryNetwork, in_virtual_time, network  # noqa: F401 - a fixture

TWICE: dict[str, Any] = {"delivery_profile": "at-least-once", "delivery_pause_seconds": 1.0}


class Picky(Probe):
    """Raises for the first `failures` messages, and counts what it was given."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.times: list[float] = []
        self.runs = 0

    async def on_message(self, message: Any) -> None:
        self.times.append(asyncio.get_running_loop().time())
        if len(self.times) <= self.failures:
            raise ValueError(f"not {message}")
        await super().on_message(message)

    @operation
    async def refuse(self) -> None:
        self.runs += 1
        raise ValueError("never")

    @operation
    async def run_slowly(self) -> int:
        self.runs += 1
        await asyncio.sleep(1000)
        return self.runs


async def run(
    command: Command[...], provider: StorageProvider, node: Fabric | None = None, **given: Any
) -> list[dict[str, Any]]:
    """The items of a command, as the socket of `node` would run it."""
    on = Administered(StorageSettings(), provider, node)
    return [item async for item in command.run(on, command.pack(**given))]


async def letters(provider: StorageProvider) -> list[dict[str, Any]]:
    return await run(delivery.ls, provider)


@in_virtual_time
async def test_a_message_whose_handler_raises_is_tried_again_after_pauses(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent = Picky(failures=3)
    async with sentinel() as hub, fabric(hub, **TWICE) as node, fabric(hub, **TWICE) as client:
        await node.serve(agent, ADDRESS)
        await client.send_message(ADDRESS, "hello")
        await asyncio.sleep(60)
        assert agent.messages == ["hello"]
        pauses = [round(later - t) for t, later in zip(agent.times, agent.times[1:], strict=False)]
        assert pauses == [1, 2, 4]
        assert await letters(node.storage) == []


@in_virtual_time
async def test_a_message_that_always_raises_is_set_aside_and_can_be_retried(
    network: MemoryNetwork,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = Picky(failures=3)
    async with (
        sentinel() as hub,
        fabric(hub, delivery_attempts=3, **TWICE) as node,
        fabric(hub, **TWICE) as client,
    ):
        await node.serve(agent, ADDRESS)
        await client.send_message(ADDRESS, "hello")
        await asyncio.sleep(60)
        assert len(agent.times) == 3
        [letter] = await letters(node.storage)
        assert (letter["direction"], letter["attempts"]) == ("received", 3)
        assert (letter["address"], letter["reason"]) == (ADDRESS, "not hello")
        assert "was set aside after 3 attempts: not hello" in caplog.text  # at the sender, too
        [shown] = await run(delivery.show, node.storage, node, message=letter["id"])
        assert shown["reasons"] == ["not hello"] * 3
        assert shown["envelope"]["frame"]["payload"] == "hello"
        await run(delivery.retry, node.storage, node, messages=[letter["id"]])
        await asyncio.sleep(1)
        assert agent.messages == ["hello"]
        assert await letters(node.storage) == []


@in_virtual_time
async def test_an_error_that_an_operation_raises_is_its_answer_and_it_runs_once(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent, storage = Picky(0), await open_provider(StorageSettings())
    async with sentinel() as hub, fabric(hub, **TWICE) as client:
        for _ in range(2):
            settings = Settings(admission_url=url(hub), **TWICE)
            async with Fabric(settings, storage=storage) as node:
                await node.serve(agent, ADDRESS)
                if not agent.runs:
                    with pytest.raises(OperationFailed, match="never"):
                        await Picky.remote(ADDRESS, fabric=client).refuse()
                await asyncio.sleep(100)
        assert agent.runs == 1
        assert await letters(storage) == []


@in_virtual_time
async def test_a_call_that_is_cut_short_in_each_attempt_is_set_aside_and_its_caller_is_told(
    network: MemoryNetwork,  # noqa: F811
) -> None:
    agent, storage = Picky(0), MemoryProvider(StorageSettings())
    async with sentinel() as hub, fabric(hub, **TWICE) as client:
        remote = Picky.remote(ADDRESS, fabric=client, timeout=900)
        calls: list[asyncio.Task[int]] = []
        settings = Settings(
            admission_url=url(hub),
            node_id="agent",
            delivery_attempts=3,
            stop_grace_seconds=0,
            **TWICE,
        )
        for _ in range(4):
            async with Fabric(settings, storage=storage) as node:
                await node.serve(agent, ADDRESS)
                if not calls:
                    calls.append(asyncio.create_task(remote.run_slowly()))
                await asyncio.sleep(100)
        with pytest.raises(CallInterrupted, match="3 attempts"):
            await calls[0]
        assert agent.runs == 3
        [letter] = await letters(storage)
        assert (letter["operation"], letter["attempts"]) == ("run_slowly", 3)


@pytest.mark.parametrize("text", ["", "{", '{"id":"x"}', '{"id":"x","frame":{"type":"Strange"}}'])
async def test_what_cannot_be_decoded_is_set_aside_at_the_start(text: str) -> None:
    storage = MemoryProvider(StorageSettings())
    received = await storage.own_store(ReceivedMessage, INBOX)
    await received.set("in", ReceivedMessage(envelope=text))
    sent = await storage.own_store(SentMessage, "__delivery_outbox")
    await sent.set("out", SentMessage(envelope=text))
    async with Fabric(Settings(delivery_profile="at-least-once"), storage=storage) as node:
        await node.serve(Probe(), ADDRESS)
        assert await Probe.remote(ADDRESS, fabric=node).echo(1) == 1
        found = await letters(storage)
        assert {letter["direction"] for letter in found} == {"sent", "received"}
        assert all("cannot be read" in letter["reason"] for letter in found)


async def test_a_message_whose_address_nobody_binds_again_is_set_aside_in_the_end() -> None:
    now = 1_000_000_000.0
    storage = MemoryProvider(StorageSettings(), clock=lambda: int(now * 1_000_000))
    store = await storage.own_store(ReceivedMessage, INBOX)
    text = '{"id":"x","to":"gone@fame.fabric","rtype":1,"frame":{"type":"Data","payload":1}}'
    await store.set("old", ReceivedMessage(envelope=text))
    now += KEEP_UNHANDLED.total_seconds() + 1
    async with Fabric(Settings(delivery_profile="at-least-once"), storage=storage):
        [letter] = await letters(storage)
        assert "Nobody bound its address" in letter["reason"]


async def test_a_plain_message_that_is_refused_is_set_aside_at_its_sender() -> None:
    async with sentinel() as hub, fabric(hub, **TWICE) as client:
        with pytest.raises(NoRoute):
            await client.send_message("nobody@fame.fabric", "hello")
        found: list[dict[str, Any]] = []

        async def look() -> None:
            while not found:
                found.extend(await letters(client.storage))
                await asyncio.sleep(0.01)

        async with asyncio.timeout(5):
            await look()
        assert (found[0]["direction"], found[0]["address"]) == ("sent", "nobody@fame.fabric")


async def test_records_of_answers_belong_to_the_node_that_sent_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("strongroom.messaging.calls.new_id", lambda: "the-same-id")
    agent = Probe()
    async with (
        sentinel() as hub,
        fabric(hub, **TWICE) as node,
        fabric(hub, **TWICE) as one,
        fabric(hub, **TWICE) as other,
    ):
        await node.serve(agent, ADDRESS)
        assert await Probe.remote(ADDRESS, fabric=one).echo("one") == "one"
        assert await Probe.remote(ADDRESS, fabric=other).echo("other") == "other"


async def test_the_commands_work_on_a_running_node_and_on_a_directory_at_rest(
    tmp_path: Path,
) -> None:
    kept = StorageSettings(profile="sqlite", directory=tmp_path)
    settings = Settings(storage=kept, delivery_attempts=1, **TWICE)
    agent = Picky(failures=2)
    async with Fabric(settings) as node:
        await node.serve(agent, ADDRESS)
        for message in ("first", "second"):
            await node.send_message(ADDRESS, message)
        await eventually(lambda: len(agent.times) == 2)
        async with connect(kept) as client:
            async with asyncio.timeout(5):
                while len(found := [item async for item in client.request(delivery.ls)]) < 2:
                    await asyncio.sleep(0.01)
            assert b'"reason":"not first"' in b"".join(found)
    async with connect(kept) as client:
        one, other = await ids(client)
        with pytest.raises(KeyMissing, match="delivery ls"):
            [_ async for _ in client.request(delivery.drop, messages=["no-such-id"])]
        [_ async for _ in client.request(delivery.drop, messages=[one])]
        [_ async for _ in client.request(delivery.retry, messages=[other])]
        assert await ids(client) == []
    async with Fabric(settings) as node:
        await node.serve(agent, ADDRESS)
        await eventually(lambda: len(agent.messages) == 1)


async def ids(client: Client) -> list[str]:
    return [json.loads(item)["id"] async for item in client.request(delivery.ls)]


async def test_a_node_that_delivers_at_most_once_retries_nothing() -> None:
    async with Fabric(Settings()) as node:
        store = await node.storage.own_store(DeadLetter, DEAD_LETTERS)
        await store.set("x", DeadLetter(direction="sent", envelope="{}"))  # type: ignore[arg-type]
        with pytest.raises(NotSupported, match="at most once"):
            await run(delivery.retry, node.storage, node, messages=[])
        assert await store.count() == 1
