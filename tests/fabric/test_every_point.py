"""At least once: whatever happens at which point, each call has one answer and was handled.

A run makes calls over a sentinel. There is a point before and after each message on a link and each
write to a disk. The run is repeated with one fault at each point.
"""

import asyncio
import json
from collections import Counter, defaultdict
from typing import Any

import pytest
from pydantic import BaseModel

from strongroom import BaseAgent, BaseAgentState, Fabric, Sentinel, operation
from strongroom.messaging.envelope import DeliveryAck
from support.crashes import Disk, Points, Process, settings_of
from support.fabrics import ADDRESS, Probe, url
from support.links import MemoryLink, MemoryNetwork, in_virtual_time, network  # noqa: F401

BOOKINGS = "bookings@fame.fabric"
PORT = 40_000
AWAY_SECONDS = 1.0
"""How long a killed process stays away."""

FAULTS = [
    "cut client",
    "cut agent",
    "cut sentinel",
    "kill agent",
    "kill sentinel",
    "replace sentinel",
    "kill client",
    "refuse agent",
    "refuse client",
    "refuse sentinel",
]


class Recording(Probe):
    """An agent whose every run gives another answer, so that a second run would show."""

    def __init__(self, runs: Counter[int], messages: Counter[int]) -> None:
        super().__init__()
        self.runs, self.heard = runs, messages

    @operation
    async def record(self, number: int) -> str:
        self.runs[number] += 1
        mine = f"{number}, run {self.runs[number]}"
        await asyncio.sleep(3 * AWAY_SECONDS if number % 2 else 0.01)
        return mine

    async def on_message(self, number: int) -> None:
        self.heard[number] += 1


class Times(BaseModel):
    """How often something was done."""

    booked: int = 0
    confirmed: int = 0


class Total(BaseAgentState):
    booked: int = 0
    confirmed: int = 0


class Bookings(BaseAgent[Total]):
    """An agent whose effects are all in units of work."""

    async def start(self) -> None:
        self.bookings = await self.storage_provider.get_kv_store(Times, "bookings")

    @operation
    async def book(self, number: int) -> str:
        async with self.unit_of_work() as work:
            work.state.booked += 1
            bookings = work.records(self.bookings)
            times = await bookings.get(str(number)) or Times()
            times.booked += 1
            await bookings.set(str(number), times)
            await asyncio.sleep(3 * AWAY_SECONDS if number % 2 else 0.01)
            await work.send_message(BOOKINGS, number)
        return f"{number}, run {times.booked}"

    async def on_message(self, number: int) -> None:
        async with self.unit_of_work() as work:
            work.state.confirmed += 1
            bookings = work.records(self.bookings)
            times = await bookings.get(str(number))
            assert times is not None
            times.confirmed += 1
            await bookings.set(str(number), times)


class World:
    """A sentinel, an agent and a client, each a process with a disk."""

    def __init__(self, network: MemoryNetwork, points: Points) -> None:  # noqa: F811
        self.points = points
        self.sentinel = Process(network, points, "sentinel")
        self.agent = Process(network, points, "agent")
        self.client = Process(network, points, "client")
        self.runs: Counter[int] = Counter()
        self.messages: Counter[int] = Counter()
        self.requests: dict[str, dict[str, Any]] = {}
        self.answers: defaultdict[str, list[str]] = defaultdict(list)
        self.returned: asyncio.Task[None] | None = None
        self.bookings = Bookings()
        self._url = ""

    async def start(self) -> None:
        for name in ("sentinel", "agent", "client"):
            await self.start_one(name)

    async def start_one(self, name: str) -> None:
        if name == "sentinel":
            settings = settings_of(self.sentinel, listener_port=PORT)
            hub = Sentinel(settings, storage=self.sentinel.disk)
            await self.sentinel.start(hub)
            self._url = url(hub)
            return
        process: Process = getattr(self, name)
        node = Fabric(settings_of(process, admission_url=self._url), storage=process.disk)
        await process.start(node)
        if name == "agent":
            await process.run(node.serve(Recording(self.runs, self.messages), ADDRESS))
            self.bookings = Bookings()
            await process.run(node.serve(self.bookings, BOOKINGS))

    def fail(self, fault: str) -> None:
        """Let one thing go wrong, and mend it a while later."""
        what, name = fault.split()
        process: Process = getattr(self, name)
        if what == "cut":
            process.cut()
            return
        if what in {"kill", "replace"}:
            process.kill()
        else:
            process.disk.refuses = True
        self.returned = asyncio.get_running_loop().create_task(self._mend(what, name))

    async def _mend(self, what: str, name: str) -> None:
        await asyncio.sleep(AWAY_SECONDS)
        if what == "replace":  # another sentinel takes its place, under another id
            self.sentinel.name = "another"
            self.sentinel.disk = Disk(self.points)
        if what == "refuse":
            getattr(self, name).disk.refuses = False
        else:
            await self.start_one(name)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """See each message on a link: it passes a point before it arrives, and one after."""
        deliver = MemoryLink._deliver

        def seen(link: MemoryLink, data: bytes) -> None:
            self.points.pass_one()
            self._note(link, json.loads(data))
            deliver(link, data)
            self.points.pass_one()

        monkeypatch.setattr(MemoryLink, "_deliver", seen)

    def _note(self, link: MemoryLink, envelope: dict[str, Any]) -> None:
        payload = envelope["frame"].get("payload")
        if not isinstance(payload, dict) or link.name != "client" or link.closed.is_set():
            return
        if "method" in payload:
            self.requests[envelope["corrId"]] = envelope
        elif link is link_of(self.client):
            self.answers[envelope["corrId"]].append(str(payload.get("result")))

    async def stop(self) -> None:
        for process in (self.client, self.agent, self.sentinel):
            assert process.node is not None
            await process.node.stop()


def link_of(process: Process) -> MemoryLink:
    return process._ends()[-1]


async def one_run(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    *,
    at: int | None = None,
    fault: str = "",
) -> int:
    """Make calls and send as many messages, with a fault at a point. Returns the points."""
    network.links.clear()
    points = Points(at, lambda: world.fail(fault))
    world = World(network, points)
    with monkeypatch.context() as patch:
        world.watch(patch)
        await world.start()
        client = world.client.node
        assert isinstance(client, Fabric)
        remote = Recording.remote(ADDRESS, fabric=client, timeout=600)
        points.is_counting = True
        calls = [world.client.run(remote.record(each)) for each in range(number)]
        sent = [world.client.run(client.send_message(ADDRESS, each)) for each in range(number)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        was_sent = await asyncio.gather(*sent, return_exceptions=True)
        await asyncio.sleep(100)  # until all is settled
        points.is_counting = False
        if world.returned is not None:
            await world.returned
        check(world, fault, results, was_sent)
        await check_repetition(world)
        await world.stop()
    return points.passed


def check(world: World, fault: str, results: list[Any], was_sent: list[Any]) -> None:
    """Each call has its answer; what was refused at once, by the client's disk, was not sent."""
    for number, result in enumerate(results):
        is_own_fault = isinstance(result, BaseException) and fault.endswith("client")
        assert is_own_fault or str(result).startswith(f"{number}, run "), (number, result)
        assert is_own_fault or world.runs[number] >= 1
        assert fault.startswith("kill agent") or world.runs[number] <= 1
    for number, failure in enumerate(was_sent):
        if isinstance(failure, DeliveryAck):
            assert world.messages[number] >= 1, number
        else:
            assert fault.endswith("client"), failure
    assert all(len(set(answers)) == 1 for answers in world.answers.values()), world.answers


async def check_repetition(world: World) -> None:
    """A request that is sent again gets the answer that it had, and does not run again."""
    runs = world.runs.copy()
    before = {corr_id: answers[0] for corr_id, answers in world.answers.items() if answers}
    world.answers.clear()
    assert world.client.node is not None
    for corr_id in before:
        inbox, _, _ = world.requests[corr_id]["replyTo"].partition("@")
        request = world.requests[corr_id] | {"replyTo": f"{inbox}@{world.client.node.path}"}
        link_of(world.client).send(json.dumps(request).encode())
    await asyncio.sleep(30)
    assert {corr_id: answers[0] for corr_id, answers in world.answers.items()} == before
    assert world.runs == runs


async def book(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    *,
    at: int | None = None,
    fault: str = "",
) -> int:
    """Make calls whose effects are in units of work, with a fault at a point."""
    network.links.clear()
    points = Points(at, lambda: world.fail(fault))
    world = World(network, points)
    with monkeypatch.context() as patch:
        world.watch(patch)
        await world.start()
        assert isinstance(world.client.node, Fabric)
        remote = Bookings.remote(BOOKINGS, fabric=world.client.node, timeout=600)
        points.is_counting = True
        calls = [world.client.run(remote.book(each)) for each in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(100)
        points.is_counting = False
        if world.returned is not None:
            await world.returned
        await check_bookings(world, fault, results)
        await world.stop()
    return points.passed


async def check_bookings(world: World, fault: str, results: list[Any]) -> None:
    """Each call that was answered has had its effects once, all of them."""
    found = await world.bookings.bookings.list()
    for number, result in enumerate(results):
        if isinstance(result, BaseException):
            assert fault.endswith(("client", "refuse agent")), (number, result)
        else:
            assert (result, str(number) in found) == (f"{number}, run 1", True)
    for times in found.values():
        assert times == Times(booked=1, confirmed=1), found
    total = await world.bookings.get_state()
    assert total == Total(booked=len(found), confirmed=len(found))


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_unit_of_work_has_its_effects_exactly_once_whatever_happens_where(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    step: int,
) -> None:
    found: list[int] = []

    async def count() -> None:
        found.append(await book(network, monkeypatch))

    in_virtual_time(count)()
    for at in range(1, found[0] + 1, step):
        in_virtual_time(book)(network, monkeypatch, at=at, fault=fault)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_short_and_a_long_call_have_an_answer_each_whatever_happens_where(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    step: int,
) -> None:
    points = points_of(network, monkeypatch, 2)
    assert points > 30
    for at in range(1, points + 1, step):
        in_virtual_time(one_run)(network, monkeypatch, 2, at=at, fault=fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hundred_calls_have_an_answer_each_whatever_happens_where(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    points = points_of(network, monkeypatch, 100)
    for at in range(1, points + 1, points // 40):
        in_virtual_time(one_run)(network, monkeypatch, 100, at=at, fault=fault)


def points_of(
    network: MemoryNetwork,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> int:
    """The number of points of a run without a fault."""
    found: list[int] = []

    async def run() -> None:
        found.append(await one_run(network, monkeypatch, number))

    in_virtual_time(run)()
    return found[0]
