"""What an operation stores and sends in a unit of work has its effect with its answer, or none."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from strongroom import BaseAgent, BaseAgentState, Fabric, Settings, operation
from strongroom.errors import CallError, NotStarted, OperationFailed, StrongroomError
from strongroom.settings import StorageSettings
from support.fabrics import eventually, fabric, sentinel
from support.processes import Program, attach_url, free_port, running

BANK, LOG = "bank@fame.fabric", "log@fame.fabric"


class Account(BaseModel):
    balance: int = 0


class Total(BaseAgentState):
    deposits: int = 0


class Bank(BaseAgent[Total]):
    """Moves money, in units of work."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.entered = asyncio.Event()

    async def start(self) -> None:
        self.accounts = await self.storage_provider.get_kv_store(Account, "accounts")
        self.kept: Any = None

    @operation
    async def deposit(self, name: str, amount: int, fails: str = "") -> int:
        async with self.unit_of_work() as work:
            accounts = work.records(self.accounts)
            account = await accounts.get(name) or Account()
            account.balance += amount
            await accounts.set(name, account)
            work.state.deposits += 1
            await work.send_message(LOG, [name, amount])
            self.entered.set()
            if fails == "inside":
                raise ValueError("inside")
        await self.go_on.wait()
        if fails == "after":
            raise ValueError("after")
        self.kept = work
        return 10**6 * ("x" * 10) if fails == "result" else account.balance  # type: ignore[return-value]

    @operation
    async def twice(self) -> None:
        async with self.unit_of_work():
            pass
        async with self.unit_of_work():
            pass

    @operation
    async def items(self) -> AsyncIterator[int]:
        async with self.unit_of_work():
            yield 1

    @operation
    async def later(self) -> None:
        async def late() -> None:
            await asyncio.sleep(0.05)
            async with self.unit_of_work():
                pass

        self.kept = asyncio.create_task(late())

    async def on_message(self, message: Any) -> None:
        await self.deposit(*message)


class Log(BaseAgent):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Any] = []

    async def on_message(self, message: Any) -> None:
        self.entries.append(message)


@asynccontextmanager
async def bank(tmp_path: Path, profile: str = "memory", **settings: Any) -> AsyncIterator[Bank]:
    """A bank and its log on one node, which is the current fabric."""
    directory = None if profile == "memory" else tmp_path / "data"
    storage = StorageSettings(profile=profile, directory=directory)
    agent, log = Bank(), Log()
    agent.log = log  # type: ignore[attr-defined]
    async with Fabric(Settings(storage=storage, stop_grace_seconds=0, **settings)) as node:
        await node.serve(log, LOG)
        await node.serve(agent, BANK)
        yield agent


async def effects(agent: Bank) -> tuple[dict[str, int], int, list[Any]]:
    accounts = {key: each.balance for key, each in (await agent.accounts.list()).items()}
    return accounts, (await agent.get_state()).deposits, agent.log.entries  # type: ignore[attr-defined]


POLICIES = [
    ("memory", "at-most-once"),
    ("memory", "at-least-once"),
    ("sqlite", "at-most-once"),
    ("sqlite", "at-least-once"),
]


@pytest.mark.parametrize(("profile", "delivery"), POLICIES)
async def test_records_state_and_messages_follow_the_return(
    tmp_path: Path, profile: str, delivery: str
) -> None:
    async with bank(tmp_path, profile, delivery_profile=delivery) as agent:
        agent.go_on.clear()
        calling = asyncio.ensure_future(Bank.remote(BANK).deposit("ada", 5))
        await agent.entered.wait()
        assert await effects(agent) == ({}, 0, [])
        agent.go_on.set()
        assert await calling == 5
        await eventually(lambda: agent.log.entries)  # type: ignore[attr-defined]
        assert await effects(agent) == ({"ada": 5}, 1, [["ada", 5]])


@pytest.mark.parametrize(("profile", "delivery"), POLICIES)
@pytest.mark.parametrize("fails", ["inside", "after", "result"])
async def test_an_operation_that_fails_stores_and_sends_nothing(
    tmp_path: Path, profile: str, delivery: str, fails: str
) -> None:
    async with bank(tmp_path, profile, delivery_profile=delivery) as agent:
        with pytest.raises(CallError):
            await Bank.remote(BANK).deposit("ada", 5, fails)
        assert await Bank.remote(BANK).deposit("bob", 1) == 1  # the next one has its turn
        await eventually(lambda: agent.log.entries)  # type: ignore[attr-defined]
        assert await effects(agent) == ({"bob": 1}, 1, [["bob", 1]])


async def test_units_of_one_agent_take_turns(tmp_path: Path) -> None:
    async with bank(tmp_path, "sqlite", delivery_profile="at-least-once") as agent:
        remote = Bank.remote(BANK)
        results = await asyncio.gather(*(remote.deposit("ada", 1) for _ in range(50)))
        assert sorted(results) == list(range(1, 51))
        await eventually(lambda: len(agent.log.entries) == 50)  # type: ignore[attr-defined]
        assert (await agent.get_state()).deposits == 50


async def test_a_record_that_was_changed_meanwhile_fails_the_unit(tmp_path: Path) -> None:
    async with bank(tmp_path) as agent:
        agent.go_on.clear()
        calling = asyncio.ensure_future(Bank.remote(BANK).deposit("ada", 5))
        await agent.entered.wait()
        await agent.accounts.set("ada", Account(balance=100))
        agent.go_on.set()
        with pytest.raises(OperationFailed, match="revision"):
            await calling
        assert await effects(agent) == ({"ada": 100}, 0, [])


async def test_a_message_whose_unit_fails_is_handled_again(tmp_path: Path) -> None:
    async with bank(
        tmp_path, delivery_profile="at-least-once", delivery_pause_seconds=0.01
    ) as agent:
        agent.go_on.clear()
        await Fabric.current().send_message(BANK, ["ada", 5])
        await agent.entered.wait()
        await agent.accounts.set("ada", Account(balance=100))
        agent.go_on.set()
        await eventually(lambda: agent.log.entries)  # type: ignore[attr-defined]
        assert await effects(agent) == ({"ada": 105}, 1, [["ada", 5]])


async def test_a_cancelled_call_stores_nothing_when_its_node_stops(tmp_path: Path) -> None:
    async with bank(tmp_path, "sqlite") as agent:
        agent.go_on.clear()
        calling = asyncio.ensure_future(Bank.remote(BANK).deposit("ada", 5))
        await agent.entered.wait()
    with pytest.raises(CallError):
        await calling
    async with bank(tmp_path, "sqlite") as agent:
        assert await effects(agent) == ({}, 0, [])


async def test_it_is_refused_where_no_answer_is_to_be_stored(tmp_path: Path) -> None:
    async with bank(tmp_path) as agent:
        with pytest.raises(StrongroomError, match="operation in which it is"):
            await agent.unit_of_work().__aenter__()
        with pytest.raises(OperationFailed, match="has a unit of work already"):
            await Bank.remote(BANK).twice()
        with pytest.raises(OperationFailed, match="operation in which it is"):
            [_ async for _ in Bank.remote(BANK).items()]
        await Bank.remote(BANK).later()
        with pytest.raises(StrongroomError, match="operation in which it is"):
            await agent.kept
        assert await Bank.remote(BANK).deposit("ada", 1) == 1
        with pytest.raises(NotStarted):
            agent.kept.records(agent.accounts)
        with pytest.raises(NotStarted):
            Bank().unit_of_work()


PROGRAM = """
import asyncio
from strongroom import BaseAgent, BaseAgentState, operation


class Total(BaseAgentState):
    deposits: int = 0


class Bank(BaseAgent[Total]):
    async def start(self):
        self.deposits = await self.storage_provider.get_kv_store(Total, "deposits")

    @operation
    async def deposit(self, number: int) -> int:
        async with self.unit_of_work() as work:
            work.state.deposits += 1
            deposits = work.records(self.deposits)
            known = await deposits.get(str(number)) or Total()
            known.deposits += 1
            await deposits.set(str(number), known)
        return known.deposits

    @operation
    async def total(self) -> list[int]:
        found = await self.deposits.list()
        return [(await self.get_state()).deposits, len(found), max(
            (each.deposits for each in found.values()), default=0)]


asyncio.run(Bank().aserve("bank@fame.fabric"))
"""


@pytest.mark.slow
async def test_a_process_killed_at_any_time_has_each_effect_once(tmp_path: Path) -> None:
    (tmp_path / "bank.py").write_text(PROGRAM)
    program = Program(str(tmp_path / "bank.py"), tmp_path)
    port = free_port()
    variables = {
        "FAME_DIRECT_ADMISSION_URL": attach_url(port),
        "FAME_DELIVERY_PROFILE": "at-least-once",
        "FAME_STORAGE_PROFILE": "sqlite",
        "FAME_STORAGE_DB_DIRECTORY": tmp_path / "data",
        "FAME_SESSION_MAX_INITIAL_ATTEMPTS": 0,
    }
    async with (
        sentinel(listener_port=port) as hub,
        running(program),
        fabric(hub, delivery_profile="at-least-once"),
    ):
        done = 0
        for pause in range(12):
            await program.start_and_wait(**variables)
            calls = [
                asyncio.ensure_future(Fabric.current().invoke(BANK, "deposit", {"number": each}))
                for each in range(done, done + 20)
            ]
            done += 20
            await asyncio.sleep(pause * 0.004)
            assert program.process is not None
            os.kill(program.process.pid, signal.SIGKILL)
            await program.process.wait()
            await program.start_and_wait(**variables)
            assert await asyncio.gather(*calls) == [1] * 20
            await program.stop()
        await program.start_and_wait(**variables)
        deposits, accounts, most_for_one = await Fabric.current().invoke(BANK, "total")
        assert (deposits, accounts, most_for_one) == (done, done, 1)
