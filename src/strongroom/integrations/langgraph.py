"""LangGraph's checkpoints in a namespace of ours.

("c", thread, ns, id)                  a checkpoint without the values of its channels
("b", thread, ns, channel, version)    the value of a channel, once for each version
("w", thread, ns, id, task, index)     a write that is pending after a checkpoint
("r", run, thread, ns, id)             which checkpoints a run made
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from strongroom.errors import RevisionConflict
from strongroom.integrations.deleting import BATCH, delete_all, delete_keys
from strongroom.integrations.waiting import wait_on
from strongroom.storage.keys import Key
from strongroom.storage.provider import StorageProvider
from strongroom.storage.typed import Delete, KeyValueStore, Set

OWNER = "langgraph-checkpoint/1"

Typed = tuple[str, bytes]
"""What LangGraph's serialisers make of a value: the name of a format, and bytes."""


class _Saved(msgspec.Struct, array_like=True):
    """A checkpoint, with what keys may have cut off."""

    thread: str
    namespace: str
    id: str
    parent: str | None
    checkpoint: Typed
    metadata: Typed
    versions: dict[str, str | int | float]
    run: str | None


class _Write(msgspec.Struct, array_like=True):
    task: str
    channel: str
    value: Typed
    path: str
    index: int


class _Place(msgspec.Struct, array_like=True):
    thread: str
    namespace: str
    id: str


_encode = msgspec.msgpack.Encoder().encode
_saved = msgspec.msgpack.Decoder(_Saved).decode
_write = msgspec.msgpack.Decoder(_Write).decode
_place = msgspec.msgpack.Decoder(_Place).decode
_typed = msgspec.msgpack.Decoder(Typed).decode


class StrongroomSaver(BaseCheckpointSaver[str]):
    """Keeps the checkpoints of graphs. They are durable when `aput` returns.

    >>> saver = await StrongroomSaver.open(provider)
    >>> graph = builder.compile(checkpointer=saver)

    The methods without `a` may be called from threads other than that of the event loop.

    Args:
        store: A store of bytes, which no other program writes.
        serde: How values become bytes, if not LangGraph's way.
    """

    def __init__(
        self, store: KeyValueStore[bytes], *, serde: SerializerProtocol | None = None
    ) -> None:
        super().__init__(serde=serde)
        self._store = store
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls,
        provider: StorageProvider,
        namespace: str = "langgraph",
        *,
        serde: SerializerProtocol | None = None,
    ) -> StrongroomSaver:
        """Open a namespace of `provider`; an agent's is `self.storage_provider`."""
        return cls(await provider.get_bytes_store(namespace, owner=OWNER), serde=serde)

    # --- reading ------------------------------------------------------------------------------

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the newest of its thread."""
        thread, ns, id_ = _named(config)
        saved = await self._find(thread, ns, id_)
        return None if saved is None else await self._tuple(saved)

    async def _find(self, thread: str, ns: str, id_: str | None) -> _Saved | None:
        if id_ is not None:
            data = await self._store.get(Key("c", thread, ns, id_))
            return None if data is None else _saved(data)
        newest = self._store.scan(Key("c", thread, ns), reverse=True, limit=1)
        return next((_saved(entry.value) for entry in [entry async for entry in newest]), None)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, or of all, the newest of each namespace first."""
        wanted = _named(config)[2] if config else None
        until = _named(before)[2] if before else None
        left = limit
        async for prefix in self._namespaces(config):
            end = prefix if until is None else Key(*prefix.parts, until)
            scanned = self._store.scan(prefix, reverse=True, until=None if until is None else end)
            async for entry in scanned:
                saved = _saved(entry.value)
                if wanted is not None and saved.id != wanted:
                    continue
                metadata = self.serde.loads_typed(saved.metadata)
                if any(metadata.get(name) != value for name, value in (filter or {}).items()):
                    continue
                if left is not None and left <= 0:
                    return
                left = None if left is None else left - 1
                yield await self._tuple(saved)

    async def _namespaces(self, config: RunnableConfig | None) -> AsyncIterator[Key]:
        """The prefixes of the checkpoints of each thread's namespaces that `config` allows."""
        if config is not None and "checkpoint_ns" in config["configurable"]:
            thread, ns, _ = _named(config)
            yield Key("c", thread, ns)
            return
        if config is not None:
            async for namespace in self._store.groups(Key("c", _named(config)[0])):
                yield namespace
            return
        async for thread in self._store.groups(Key("c")):
            async for namespace in self._store.groups(thread):
                yield namespace

    async def _tuple(self, saved: _Saved) -> CheckpointTuple:
        place = (saved.thread, saved.namespace)
        wanted = {Key("b", *place, c, _version(v)): c for c, v in saved.versions.items()}
        blobs, writes = await asyncio.gather(
            self._store.get_many(wanted), self._writes(*place, saved.id)
        )
        loads = self.serde.loads_typed
        checkpoint: Checkpoint = loads(saved.checkpoint)
        values = {wanted[Key.of(key)]: loads(_typed(data)) for key, data in blobs.items()}
        checkpoint["channel_values"] = {**checkpoint["channel_values"], **values}
        pending: list[PendingWrite] = [(w.task, w.channel, loads(w.value)) for w in writes]
        return CheckpointTuple(
            config=_config(*place, saved.id),
            checkpoint=checkpoint,
            metadata=loads(saved.metadata),
            parent_config=_config(*place, saved.parent) if saved.parent else None,
            pending_writes=pending,
        )

    async def _writes(self, thread: str, ns: str, id_: str) -> list[_Write]:
        scanned = self._store.scan(Key("w", thread, ns, id_))
        writes = [_write(entry.value) async for entry in scanned]
        return sorted(writes, key=lambda w: writes_sort_key(w.path, w.task, w.index))

    # --- writing ------------------------------------------------------------------------------

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint with the channels that changed, in one commit."""
        thread, ns, parent = _named(config)
        dumps = self.serde.dumps_typed
        values, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
        all_metadata = get_checkpoint_metadata(config, metadata)
        inline = {name: value for name, value in values.items() if name not in versions}
        saved = _Saved(
            thread,
            ns,
            checkpoint["id"],
            parent,
            dumps({**checkpoint, "channel_values": inline}),
            dumps(all_metadata),
            versions,
            all_metadata.get("run_id"),
        )
        changed = [name for name in new_versions if name in values and name in versions]
        writes = [
            Set(Key("b", thread, ns, name, _version(versions[name])), _encode(dumps(values[name])))
            for name in changed
        ]
        writes.append(Set(Key("c", thread, ns, saved.id), _encode(saved)))
        if saved.run is not None:
            place = _encode(_Place(thread, ns, saved.id))
            writes.append(Set(Key("r", saved.run, thread, ns, saved.id), place))
        await self._store.apply(writes)
        return _config(thread, ns, saved.id)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task has written. What it had written before stays, but for its state."""
        thread, ns, id_ = _named(config)
        made: dict[Key, Set[bytes]] = {}
        for place, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, place)
            write = _Write(task_id, channel, self.serde.dumps_typed(value), task_path, index)
            key = Key("w", thread, ns, id_ or "", task_id, index)
            made[key] = Set(key, _encode(write), expect=0 if index >= 0 else None)
        while made:
            known = await self._store.get_many(
                key for key, set_ in made.items() if set_.expect == 0
            )
            new = [set_ for key, set_ in made.items() if key not in known]
            try:
                await self._store.apply(new)
            except RevisionConflict:  # the same task has run twice, and the other was first
                continue
            return

    # --- deleting and copying -----------------------------------------------------------------

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        thread = str(thread_id)
        async for entry in self._store.scan(Key("c", thread)):
            saved = _saved(entry.value)
            if saved.run is not None:
                await self._store.delete(Key("r", saved.run, thread, saved.namespace, saved.id))
        for kind in ("c", "w", "b"):
            await delete_all(self._store, Key(kind, thread))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that these runs made, and their writes."""
        for run in run_ids:
            found = [_place(e.value) async for e in self._store.scan(Key("r", str(run)))]
            for place in found:
                await self._delete_checkpoint(place.thread, place.namespace, place.id, str(run))
            for thread, ns in {(place.thread, place.namespace) for place in found}:
                await self._delete_unused_values(thread, ns)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread with all its checkpoints, values and writes."""
        source, target = str(source_thread_id), str(target_thread_id)
        batch: list[Set[bytes] | Delete] = []
        for kind in ("b", "w", "c"):
            async for entry in self._store.scan(Key(kind, source)):
                data, rest = entry.value, Key.of(entry.key)[len(Key(kind, source)) :]
                if kind == "c":
                    saved = _saved(data)
                    saved.thread = target
                    data = _encode(saved)
                    if saved.run is not None:
                        place = _Place(target, saved.namespace, saved.id)
                        run_key = Key("r", saved.run, target, saved.namespace, saved.id)
                        batch.append(Set(run_key, _encode(place)))
                batch.append(Set(Key.of(f"{Key(kind, target)}{rest}"), data))
                batch = await self._apply_if_full(batch)
        await self._store.apply(batch)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all checkpoints of threads, or all but the newest of each namespace.

        The ancestors stay from which the newest one's delta channels are rebuilt.
        """
        if strategy not in {"keep_latest", "delete"}:
            raise ValueError(f"A strategy is 'keep_latest' or 'delete', not {strategy!r}.")
        for thread in map(str, thread_ids):
            if strategy == "delete":
                await self.adelete_thread(thread)
                continue
            async for prefix in self._namespaces({"configurable": {"thread_id": thread}}):
                saved = [_saved(entry.value) async for entry in self._store.scan(prefix)]
                kept = await self._needed(saved)
                for each in saved:
                    if each.id not in kept:
                        await self._delete_checkpoint(thread, each.namespace, each.id, each.run)
                await self._delete_unused_values(thread, saved[-1].namespace)

    async def _needed(self, saved: list[_Saved]) -> set[str]:
        """The newest checkpoint, and its ancestors as far as a delta channel needs them."""
        by_id, newest = {each.id: each for each in saved}, saved[-1]
        metadata = self.serde.loads_typed(newest.metadata)
        missing = set(metadata.get("counters_since_delta_snapshot") or {})
        kept: set[str] = set()
        current: _Saved | None = newest
        while current is not None:
            kept.add(current.id)
            place = (current.thread, current.namespace)
            keys = {
                Key("b", *place, name, _version(current.versions[name])): name
                for name in missing & current.versions.keys()
            }
            found = await self._store.get_many(keys)
            missing -= {keys[Key.of(key)] for key in found}
            current = by_id.get(current.parent or "") if missing else None
        return kept

    async def _delete_checkpoint(self, thread: str, ns: str, id_: str, run: str | None) -> None:
        await delete_all(self._store, Key("w", thread, ns, id_))
        writes: list[Set[bytes] | Delete] = [Delete(Key("c", thread, ns, id_))]
        if run is not None:
            writes.append(Delete(Key("r", run, thread, ns, id_)))
        await self._store.apply(writes)

    async def _delete_unused_values(self, thread: str, ns: str) -> None:
        # First the values, then who uses them: a value that is stored meanwhile is not looked at.
        values = [key async for key in self._store.keys(Key("b", thread, ns))]
        used: set[str] = set()
        async for entry in self._store.scan(Key("c", thread, ns)):
            versions = _saved(entry.value).versions
            used |= {Key("b", thread, ns, name, _version(v)) for name, v in versions.items()}
        await delete_keys(self._store, [key for key in values if key not in used])

    async def _apply_if_full(self, batch: list[Set[bytes] | Delete]) -> list[Set[bytes] | Delete]:
        if len(batch) < BATCH:
            return batch
        await self._store.apply(batch)
        return []

    # --- for threads --------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`aget_tuple`, for a thread."""
        return wait_on(self._loop, self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """`alist`, for a thread."""
        items = self.alist(config, filter=filter, before=before, limit=limit)
        while (item := wait_on(self._loop, _next(items))) is not None:
            yield item

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`aput`, for a thread."""
        return wait_on(self._loop, self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """`aput_writes`, for a thread."""
        wait_on(self._loop, self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread`, for a thread."""
        wait_on(self._loop, self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`adelete_for_runs`, for a thread."""
        wait_on(self._loop, self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`acopy_thread`, for a thread."""
        wait_on(self._loop, self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`aprune`, for a thread."""
        wait_on(self._loop, self.aprune(thread_ids, strategy=strategy))

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002
        """A version after `current` that no fork of the thread has: values are kept by it."""
        number = int(str(current).partition(".")[0]) if current is not None else 0
        return f"{number + 1:032}.{random.random():016}"  # noqa: S311 - it hides nothing


async def _next(items: AsyncIterator[CheckpointTuple]) -> CheckpointTuple | None:
    return await anext(items, None)


def _named(config: RunnableConfig) -> tuple[str, str, str | None]:
    chosen = config["configurable"]
    return str(chosen["thread_id"]), chosen.get("checkpoint_ns", ""), chosen.get("checkpoint_id")


def _config(thread: str, ns: str, id_: str) -> RunnableConfig:
    named = {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": id_}
    return {"configurable": named}


def _version(version: str | float) -> str | int:
    return repr(version) if isinstance(version, float) else version
