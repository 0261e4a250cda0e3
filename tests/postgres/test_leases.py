"""Only one process at a time is a node: leases, what is fenced off, and guests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel

from strongroom import BaseAgentState, Node, Settings, StorageSettings
from strongroom.agents.state import StateHolder
from strongroom.errors import IdentityInUse, IdentityLost, RevisionConflict
from strongroom.storage import Write
from strongroom.storage.postgres import identity
from support.postgres import new_space, opened, server
from support.processes import Program, running


class Note(BaseModel):
    text: str = ""


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(identity, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(identity, "LOOK_SECONDS", 0.1)


def node(space: str, node_id: str | None = None) -> Node:
    storage = StorageSettings(profile="postgres", url=server().url, space=space)
    return Node(Settings(storage=storage, node_id=node_id))


async def names(space: str) -> list[str]:
    connection = await asyncpg.connect(server().url)
    rows = await connection.fetch(f'SELECT name FROM "{space}".namespace WHERE name IS NOT NULL')
    await connection.close()
    return sorted(row["name"].decode() for row in rows)


async def test_a_node_keeps_its_own_namespaces_under_its_id() -> None:
    space = new_space()
    for _ in range(2):  # after a clean stop the id is free at once
        async with node(space, "one") as first, node(space, "two") as second:
            assert (first.id, second.id) == ("one", "two")
            assert "__node_meta" in await first.storage.namespaces()
    found = await names(space)
    assert [name for name in found if name.endswith("/__node_meta")] == [
        "one/__node_meta",
        "two/__node_meta",
    ]


@pytest.mark.usefixtures("short_leases")
async def test_a_second_process_cannot_be_the_same_node() -> None:
    space = new_space()
    async with node(space, "one"):
        with pytest.raises(IdentityInUse, match="'one'"):
            async with node(space, "one"):
                pass
    async with node(space, "one"):
        pass


@pytest.mark.usefixtures("short_leases")
async def test_a_process_that_slept_through_its_lease_can_write_nothing_any_more() -> None:
    space = new_space()
    async with opened(server().url, space=space) as sleeper:
        await sleeper.claim("one")
        held = await sleeper.open("__node_meta")
        await held.apply([Write("a", b"1")])
        assert sleeper._identity is not None
        sleeper._identity._renewing.cancel()  # as if it was stopped
        async with opened(server().url, space=space) as successor:
            await successor.claim("one")
            store = await successor.open("__node_meta")
            await store.apply([Write("a", b"2")])
            with pytest.raises(IdentityLost, match="'one'"):
                await held.apply([Write("a", b"3")])
            with pytest.raises(IdentityLost):
                await sleeper.until_lost()
            [record] = await store.read(["a"])
            assert record is not None
            assert record.value == b"2"


@pytest.mark.slow
async def test_a_node_that_was_stopped_ends_with_its_exit_status(tmp_path: Path) -> None:
    space = new_space()
    program = Program("agent.py", tmp_path)
    variables: dict[str, Any] = {
        "FAME_STORAGE_PROFILE": "postgres",
        "FAME_STORAGE_URL": server().url,
        "FAME_STORAGE_SPACE": space,
        "FAME_NODE_ID": "one",
    }
    async with running(program):
        await program.start_and_wait(**variables)
        assert program.process is not None
        os.kill(program.process.pid, signal.SIGSTOP)
        async with node(space, "one"):  # waits for the end of the lease
            os.kill(program.process.pid, signal.SIGCONT)
            assert await program.wait() == IdentityLost.exit_code
    assert "strongroom: error: Another process has claimed the node id 'one'" in (
        program.log.read_text()
    )


async def test_a_guest_leaves_nothing_behind() -> None:
    space = new_space()
    async with node(space) as guest, opened(server().url, space=space) as provider:
        await (await provider.get_kv_store(Note, "notes")).set("a", Note())
        assert f"{guest.id}/__node_meta" in await names(space)
    assert await names(space) == ["notes"]


async def test_a_guest_that_died_is_removed_after_a_week_unless_it_has_messages() -> None:
    space = new_space()
    guests = []
    for inbox in (False, True):
        async with opened(server().url, space=space) as provider:
            guests.append(await provider.claim(None))
            await provider.open("__node_meta")
            if inbox:
                await (await provider.open("__delivery_inbox")).apply([Write("a", b"message")])
            provider._identity._renewing.cancel()
            provider._identity = None  # it ends without a clean stop
    connection = await asyncpg.connect(server().url)
    await connection.execute(f"UPDATE \"{space}\".node SET until = now() - interval '8 days'")
    await connection.close()
    async with node(space, "one"):
        pass
    found = await names(space)
    assert f"{guests[0]}/__node_meta" not in found
    assert f"{guests[1]}/__delivery_inbox" in found


async def test_of_two_replicas_that_change_an_agents_state_at_once_one_gets_a_conflict() -> None:
    class Count(BaseAgentState):
        count: int = 0

    space = new_space()
    async with (
        opened(server().url, space=space) as here,
        opened(server().url, space=space) as there,
    ):
        first = StateHolder(Count, "__agent_counter", "state", Count, here)
        second = StateHolder(Count, "__agent_counter", "state", Count, there)
        async with first.change() as state:
            state.count += 1
        with pytest.raises(RevisionConflict):
            async with first.change() as state:
                async with second.change() as other:
                    other.count += 1
                state.count += 1
        assert (await first.get()).count == 2


async def test_an_old_epoch_that_opens_a_namespace_does_not_shut_out_the_new_one() -> None:
    space = new_space()
    async with opened(server().url, space=space) as old:
        await old.claim("one")
        old._identity._renewing.cancel()
        connection = await asyncpg.connect(server().url)
        await connection.execute(f'UPDATE "{space}".node SET until = now()')
        await connection.close()
        async with opened(server().url, space=space) as new:
            await new.claim("one")
            held = await old.open("__node_meta")
            store = await new.open("__node_meta")
            await store.apply([Write("a", b"1")])
            with pytest.raises(IdentityLost):
                await held.apply([Write("a", b"2")])
