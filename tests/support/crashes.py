"""Nodes of one process that a test can kill: what they do ends at once, and their disk stays.

A test counts the points of a run, such as messages and writes, and then repeats the run with one
fault at each of them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from strongroom import Sentinel, Settings
from strongroom.errors import StoreUnavailable
from strongroom.nodes.node import Node
from strongroom.settings import StorageSettings
from strongroom.storage.memory import MemoryProvider
from strongroom.storage.provider import StorageProvider
from strongroom.storage.records import Batch, RecordStore, Write
from strongroom.testing.faults import FaultyStore
from support.links import MemoryLink, MemoryNetwork

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Points:
    """Counts what happens, and calls `fault` at one of the points."""

    def __init__(self, at: int | None = None, fault: Callable[[], None] | None = None) -> None:
        self.passed = 0
        self.is_counting = False
        self._at = at
        self.fault = fault

    def pass_one(self) -> None:
        if not self.is_counting:
            return
        self.passed += 1
        if self.passed == self._at and self.fault is not None:
            self.fault()


class Disk(StorageProvider):
    """What a killed node leaves. It refuses everything to a process that is dead."""

    def __init__(self, points: Points) -> None:
        super().__init__(StorageSettings())
        self.points = points
        self.is_gone = False
        self.refuses = False
        self.kept = MemoryProvider(StorageSettings())

    def of_next_process(self) -> Disk:
        """The same disk, for the process that comes after this one."""
        self.is_gone = True
        disk = Disk(self.points)
        disk.kept = self.kept
        return disk

    async def open(self, namespace: str) -> RecordStore:
        return _Guarded(self, await self.kept.open(namespace))

    async def apply_together(self, batches: Sequence[Batch]) -> None:
        self.points.pass_one()
        self.check()
        await asyncio.sleep(0)
        await self.kept.apply_together(batches)
        self.points.pass_one()
        if self.is_gone:
            raise StoreUnavailable("The disk is gone.")

    def check(self) -> None:
        if self.refuses or self.is_gone:
            raise StoreUnavailable("The disk refuses.")

    async def namespaces(self) -> list[str]:
        return await self.kept.namespaces()

    async def drop(self, namespace: str) -> None:
        await self.kept.drop(namespace)

    async def close(self) -> None:
        """The records stay."""


class _Guarded(FaultyStore):
    def __init__(self, disk: Disk, store: RecordStore) -> None:
        super().__init__(store)
        self._disk = disk

    async def apply(self, writes: Sequence[Write], **options: Any) -> list[int]:
        self._disk.points.pass_one()  # before it is stored, and again after
        self._disk.check()
        await asyncio.sleep(0)
        revisions = await super().apply(writes, **options)
        self._disk.points.pass_one()
        if self._disk.is_gone:
            raise StoreUnavailable("The disk is gone.")
        return revisions


class Process:
    """A node that can be killed and started again on the same disk."""

    def __init__(self, network: MemoryNetwork, points: Points, name: str) -> None:
        self.name = name
        self.disk = Disk(points)
        self.node: Node | None = None
        self._network = network
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, node: Node) -> None:
        """Run `node` as this process; only what it starts itself dies with it."""
        self.node = node
        loop = asyncio.get_running_loop()
        if loop.get_task_factory() is None:
            loop.set_task_factory(_remember)  # type: ignore[arg-type]
        context = contextvars.copy_context()
        context.run(_process.set, self)
        await loop.create_task(node.start(), context=context)

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` in this process."""
        context = contextvars.copy_context()
        context.run(_process.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def remember(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def kill(self) -> None:
        """End everything that the process does, without a chance to store or to send."""
        self.disk = self.disk.of_next_process()
        for mine in self._ends():
            mine.closed.set()
            mine.receiver = None
            _hang_up(mine.peer)
        if isinstance(self.node, Sentinel):
            self._network.listeners.clear()
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()

    def cut(self) -> None:
        """Cut the process's links."""
        for link in self._ends():
            link._end("it was cut")

    def _ends(self) -> list[MemoryLink]:
        if isinstance(self.node, Sentinel):
            return [link.peer for link in self._network.links]
        return [link for link in self._network.links if link.name == self.name]


def _hang_up(link: MemoryLink) -> None:
    if not link.closed.is_set():
        link.closed.set()
        if link.receiver is not None:
            link.receiver.on_closed("the other end is gone")


def _remember(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any],
    context: contextvars.Context | None = None,
) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, context=context)
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process.remember(task)
    return task


def settings_of(process: Process, **settings: Any) -> Settings:
    """The settings of a node that delivers at least once and waits for nothing when it stops."""
    return Settings(
        node_id=process.name,
        delivery_profile="at-least-once",
        stop_grace_seconds=0,
        max_initial_attempts=0,
        **settings,
    )
