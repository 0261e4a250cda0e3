"""Everything at once: bursts, cut links, killed processes, slow readers and a full disk.

make soak                       # ten minutes, and how the calls ended
make soak SOAK_SECONDS="60 5"   # a minute, from the seed 5
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import random
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from strongroom import Agent, Fabric, Settings, StorageSettings
from strongroom.errors import CallError
from support.files import descriptors
from support.processes import Program, attach_url, free_port, running
from support.proxy import Proxy, proxied

BURST = 100
PATIENCE_SECONDS = 30.0
"""Seconds in which a call must end, whatever happens to it."""


class Soak:
    """Two callers, an agent and a sentinel, and what is done to them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.ends: collections.Counter[str] = collections.Counter()
        self.written: list[str] = []
        self.hub = Program("sentinel.py", directory)
        self.agent = Program("ledger.py", directory)
        self._port = free_port()
        self._directory = directory
        self._names = iter(range(10**9))

    async def start_hub(self) -> None:
        await self.hub.start_and_wait(
            FAME_LISTENER_PORT=self._port, **self._storage("sqlite", "hub")
        )

    async def start_agent(self, link: Proxy) -> None:
        await self.agent.start_and_wait(
            FAME_DIRECT_ADMISSION_URL=attach_url(link.port),
            FAME_DELIVERY_PROFILE="at-least-once",
            FAME_STORAGE_MASTER_KEY="11" * 32,
            **self._storage("encrypted-sqlite", "agent"),
        )

    def _storage(self, profile: str, name: str) -> dict[str, object]:
        return {
            "FAME_STORAGE_PROFILE": profile,
            "FAME_STORAGE_DB_DIRECTORY": self._directory / name,
        }

    @contextlib.asynccontextmanager
    async def world(self) -> AsyncIterator[list[Proxy]]:
        """Sentinel and agent, each reached through a proxy."""
        async with (
            running(self.agent, self.hub),
            proxied(self._port) as callers,
            proxied(self._port) as agents,
        ):
            await self.start_hub()
            await self.start_agent(agents)
            yield [callers, agents]

    # --- what callers do ---

    async def account(self, call: Awaitable[Any], expected: Any) -> bool:
        """Wait for a call, and count how it ended. Returns whether it gave its result."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS + 10):
                result = await call
        except CallError as error:
            self.ends[type(error).__name__] += 1
            return False
        assert result == expected
        self.ends["answered"] += 1
        return True

    async def burst(self, fabric: Fabric) -> None:
        remote = Agent.remote_by_address("ledger@fame.fabric", fabric=fabric)
        texts = [f"{number}" * 50 for number in range(BURST)]
        calls = [self.account(remote.echo(text, _timeout=PATIENCE_SECONDS), text) for text in texts]
        await asyncio.gather(*calls)

    async def write_down(self, fabric: Fabric) -> None:
        remote = Agent.remote_by_address("ledger@fame.fabric", fabric=fabric)
        names = [f"call-{next(self._names)}" for _ in range(BURST // 4)]
        calls = [
            self.account(remote.write_down(name, _timeout=PATIENCE_SECONDS), name) for name in names
        ]
        done = await asyncio.gather(*calls)
        self.written += [name for name, is_done in zip(names, done, strict=True) if is_done]

    async def read_slowly(self, fabric: Fabric) -> None:
        remote = Agent.remote_by_address("ledger@fame.fabric", fabric=fabric)
        leaves_at = self.random.randrange(200)
        seen: list[int] = []
        try:
            items = remote.numbers(100, _stream=True, _timeout=PATIENCE_SECONDS)
            async with contextlib.aclosing(items):
                async for item in items:
                    seen.append(item)
                    if item == leaves_at:
                        break
                    if item % 20 == 0:
                        await asyncio.sleep(0.02)
        except CallError as error:
            self.ends[f"stream {type(error).__name__}"] += 1
        else:
            self.ends["streams read"] += 1
        assert seen == list(range(len(seen)))

    # --- what is done to them ---

    async def harm(self, links: list[Proxy], *, kill: bool) -> None:
        harms = ["cut callers", "cut agent", "stall", "full disk"] + ["agent", "hub"] * kill
        harm = self.random.choice(harms)
        self.ends[f"harm: {harm}"] += 1
        callers, agents = links
        match harm:
            case "cut callers":
                callers.cut()
            case "cut agent":
                agents.cut()
            case "stall":
                callers.flowing.clear()
                await asyncio.sleep(self.random.random())
                callers.flowing.set()
            case "full disk":
                self._signal(signal.SIGUSR1)
                await asyncio.sleep(self.random.random())
                self._signal(signal.SIGUSR2)
            case "agent":
                await self.agent.stop(signal.SIGKILL)
                await self.start_agent(agents)
            case "hub":
                await self.hub.stop(signal.SIGKILL)
                await self.start_hub()

    def _signal(self, number: int) -> None:
        assert self.agent.process is not None
        self.agent.process.send_signal(number)

    # --- what must hold ---

    async def check_ledger(self, fabric: Fabric) -> None:
        """What was answered is written down."""
        remote = Agent.remote_by_address("ledger@fame.fabric", fabric=fabric)
        for name in self.written:
            assert await remote.times(name) >= 1, name

    def memory(self) -> dict[str, float]:
        """Megabytes of each process."""
        assert self.hub.process is not None
        assert self.agent.process is not None
        return {"hub": _rss(self.hub.process.pid), "agent": _rss(self.agent.process.pid)}


def _rss(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def soak(directory: Path, seconds: float, seed: int) -> Soak:
    """Run for `seconds`: with kills in the first half, and with a look at memory in the second."""
    run = Soak(directory, seed)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with run.world() as links:
        before = _left_behind()
        at_least_once = StorageSettings(profile="sqlite", directory=directory / "caller")
        url = attach_url(links[0].port)
        async with (
            Fabric(Settings(admission_url=url)) as fabric,
            Fabric(
                Settings(admission_url=url, delivery_profile="at-least-once", storage=at_least_once)
            ) as stubborn,
        ):
            memory: dict[str, float] = {}
            while loop.time() < end:
                is_second_half = loop.time() > end - seconds / 2
                memory = memory or (run.memory() if is_second_half else {})
                await asyncio.gather(
                    run.burst(fabric),
                    run.write_down(stubborn),
                    *(run.read_slowly(fabric) for _ in range(5)),
                    run.harm(links, kill=not is_second_half),
                )
            await run.check_ledger(fabric)
            for name, megabytes in run.memory().items():
                assert megabytes < memory[name] * 1.2 + 5, (name, memory, megabytes)
        await asyncio.sleep(1)
        gc.collect()
        after = _left_behind()
        assert after["tasks"] <= before["tasks"], asyncio.all_tasks()
        assert after["threads"] <= before["threads"], threading.enumerate()
        assert after["descriptors"] <= before["descriptors"]
    return run


def _left_behind() -> dict[str, int]:
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": descriptors(),
    }


@pytest.mark.slow
async def test_every_call_is_accounted_for_whatever_happens(tmp_path: Path) -> None:
    run = await soak(tmp_path, seconds=40, seed=1)
    assert run.ends["answered"] > 1000
    assert run.ends["streams read"] > 10


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        number = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
        print(f"seed {number}")
        found = asyncio.run(soak(Path(place), float(sys.argv[1]), number))
        for what, count in sorted(found.ends.items()):
            print(f"{count:8} {what}")
