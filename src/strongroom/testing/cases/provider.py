"""Cases of `StorageProvider`: namespaces, closing, and the data after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from strongroom.errors import InvalidNamespace, RevisionConflict, StoreClosed
from strongroom.storage import Batch, Feature, RecordStore, Write
from strongroom.storage.provider import NODE_META
from strongroom.testing.cases.typed import Item
from strongroom.testing.trial import Trial, case, everything, get, holds, present, put, raises, same


@case()
async def namespaces_are_separate(trial: Trial) -> None:
    first, second = await trial.store(a=b"1"), await trial.store(a=b"2", b=b"3")
    same(await everything(first), {"a": b"1"}, "the first namespace")
    same(await everything(second), {"a": b"2", "b": b"3"}, "the second namespace")


@case()
async def an_open_namespace_is_returned_again(trial: Trial) -> None:
    name = trial.name()
    stores = await asyncio.gather(*(trial.provider.open(name) for _ in range(5)))
    await put(stores[0], [("a", b"1")])
    for store in stores:
        same(await everything(store), {"a": b"1"}, "what one has written, read through the others")
    revisions = await asyncio.gather(*(store.apply([Write("a", b"2")]) for store in stores))
    same(len({revision for [revision] in revisions}), 5, "the revisions of all writes")


@case()
async def namespaces_are_listed_in_order(trial: Trial) -> None:
    name = trial.name()
    names = [f"{name}-{suffix}" for suffix in ("b", "B2", "a", "x.y_z", "0" * 60)]
    for each in names:
        await trial.provider.open(each)
    listed = await trial.provider.namespaces()
    same([each for each in listed if each.startswith(name)], sorted(names), "namespaces()")


@case()
async def a_dropped_namespace_is_gone_and_can_be_created_again(trial: Trial) -> None:
    name, other = trial.name(), await trial.store(a=b"1")
    await put(await trial.provider.open(name), [("a", b"1")])
    await trial.provider.drop(name)
    await trial.provider.drop(name)
    holds(name not in await trial.provider.namespaces(), "a dropped namespace is not listed")
    same(await everything(await trial.provider.open(name)), {}, "the namespace created again")
    same(await everything(other), {"a": b"1"}, "another namespace")


@case()
async def names_that_differ_only_in_case_or_leave_the_directory_are_refused(trial: Trial) -> None:
    name = trial.name()
    await trial.provider.get_kv_store(Item, name)
    await trial.provider.get_kv_store(Item, name)
    forbidden = ("", "../up", "a/b", ".hidden", "a\0b", "é", "x" * 121)
    for wrong in (name.upper(), name.lower(), *forbidden):
        with raises(InvalidNamespace, f"opening {wrong!r}"):
            await trial.provider.get_kv_store(Item, wrong)
    await trial.provider.get_kv_store(Item, f"{name}-".ljust(120, "x"))
    await trial.provider.own_store(Item, NODE_META)


def _calls(store: RecordStore) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
    """One call of each method that every store has."""
    return [
        ("read", lambda: store.read(["a"])),
        ("scan", store.scan),
        ("count", store.count),
        ("apply", lambda: store.apply([Write("a", b"1")])),
    ]


@case()
async def a_closed_store_says_so(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    await store.close()
    await store.close()
    for method, call in _calls(store):
        with raises(StoreClosed, f"{method}() after close()"):
            await call()


@case()
async def a_closed_provider_says_so(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    await trial.provider.close()
    await trial.provider.close()
    with raises(StoreClosed, "open() after the provider's close()"):
        await trial.provider.open(trial.name())
    for method, call in _calls(store):
        with raises(StoreClosed, f"{method}() after the provider's close()"):
            await call()


@case(Feature.WATCH)
async def closing_ends_calls_that_wait_for_changes(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    watch = asyncio.create_task(store.changes((await store.changes(None)).cursor))
    await asyncio.wait([watch], timeout=0.05)
    await store.close()
    async with asyncio.timeout(5):
        with raises(StoreClosed, "a changes() that was waiting"):
            await watch
    with raises(StoreClosed, "changes() after close()"):
        await store.changes(0)


@case(Feature.DURABLE)
async def a_restart_finds_everything(trial: Trial) -> None:
    name = trial.name()
    store = await trial.provider.open(name)
    await put(store, [("a", b"1"), ("b", b"2"), ("gone", b"3"), ("empty", b""), ("😀", b"4")])
    trial.clock.advance(5)
    await put(store, [("a", b"5")])
    await store.apply([Write("gone", None)])
    before = {record.key: record for record in (await store.scan()).records}
    names = await trial.provider.namespaces()
    store = await trial.reopen(name)
    after = {record.key: record for record in (await store.scan()).records}
    same(after, before, "records with revisions and times")
    same(await trial.provider.namespaces(), names, "namespaces")


@case(Feature.DURABLE)
async def revisions_continue_after_a_restart(trial: Trial) -> None:
    name = trial.name()
    store = await trial.provider.open(name)
    await put(store, [("a", b"1"), ("b", b"2")])
    [last] = await store.apply([Write("b", None)])
    store = await trial.reopen(name)
    [revision] = await store.apply([Write("c", b"3")])
    holds(revision > last, "a revision after a restart is higher than all earlier ones")
    await store.apply([Write("a", None)])
    [last] = await store.apply([Write("c", None)])
    store = await trial.reopen(name)
    [revision] = await store.apply([Write("a", b"4", expect=0)])
    holds(revision > last, "the same after everything was deleted")


@case(Feature.TOGETHER)
async def writes_in_several_namespaces_are_stored_together_or_not_at_all(trial: Trial) -> None:
    names = [trial.name() for _ in range(3)]
    stores = [await trial.provider.open(name) for name in names]

    def both(first: Write, second: Write, **checks: int) -> list[Batch]:
        return [Batch(names[0], [first]), Batch(names[1], [second], checks or None)]

    await trial.provider.apply_together(both(Write("a", b"1"), Write("b", b"2")))
    same(await everything(stores[0]), {"a": b"1"}, "the first namespace")
    same(await everything(stores[1]), {"b": b"2"}, "the second namespace")
    with raises(RevisionConflict, "a condition of the second namespace that does not hold"):
        await trial.provider.apply_together(both(Write("a", b"3"), Write("b", b"3"), c=7))
    with raises(RevisionConflict, "a condition of the first namespace that does not hold"):
        await trial.provider.apply_together(
            both(Write("a", b"3", expect=0), Write("b", None, expect=0))
        )
    same(await everything(stores[0]), {"a": b"1"}, "the first namespace, after a conflict")
    same(await everything(stores[1]), {"b": b"2"}, "the second namespace, after a conflict")
    await asyncio.gather(
        *(
            trial.provider.apply_together(
                [Batch(name, [Write(f"k{number}", b"v")]) for name in names[:: 1 - number % 2 * 2]]
            )
            for number in range(10)
        ),
        *(put(store, [("beside", b"v")]) for store in stores),
    )
    for store in stores:
        holds(await store.count("k") == 10, "units at the same time are all stored")
        holds(await store.count("beside") == 1, "so are writes beside them")


@case(Feature.DURABLE)
async def writes_under_way_at_close_are_stored_or_refused(trial: Trial) -> None:
    name = trial.name()
    store = await trial.provider.open(name)
    tasks = [asyncio.create_task(store.apply([Write(f"k{n}", b"v")])) for n in range(50)]
    await asyncio.sleep(0)
    await trial.provider.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await trial.restart()
    store = await trial.provider.open(name)
    for number, result in enumerate(results):
        record = await get(store, f"k{number}")
        if isinstance(result, StoreClosed):
            same(record, None, "a write that was refused")
        else:
            holds(isinstance(result, list), f"a write succeeds or is refused, but not: {result!r}")
            holds(record is not None, "a write that was acknowledged is stored")


@case(Feature.DURABLE)
async def a_dropped_namespace_stays_gone_after_a_restart(trial: Trial) -> None:
    name = trial.name()
    await put(await trial.provider.open(name), [("a", b"1")])
    await trial.provider.drop(name)
    store = await trial.reopen(name)
    same(await everything(store), {}, "a namespace that was dropped before the restart")


@case(Feature.DURABLE, Feature.TTL)
async def records_expire_while_the_store_is_closed(trial: Trial) -> None:
    name = trial.name()
    store = await trial.provider.open(name)
    expires = trial.clock() + 1_000_000
    await store.apply([Write("goes", b"1", expires=expires)])
    await store.apply([Write("stays", b"2", expires=expires + 1)])
    await trial.provider.close()
    trial.clock.now = expires
    await trial.restart()
    store = await trial.provider.open(name)
    same(await everything(store), {"stays": b"2"}, "after a restart")
    same((await present(store, "stays")).expires, expires + 1, "the expiry of the other")


@case(Feature.DURABLE, Feature.WATCH)
async def a_cursor_outlives_a_restart(trial: Trial) -> None:
    name = trial.name()
    store = await trial.provider.open(name)
    await put(store, [("a", b"1"), ("b", b"1"), ("c", b"1")])
    cursor = (await store.changes(None)).cursor
    await store.apply([Write("b", None)])
    store = await trial.reopen(name)
    await put(store, [("d", b"1")])
    changes = await store.changes(cursor)
    found = [(change.key, change.record is not None) for change in changes.changes]
    same(found, [("b", False), ("d", True)], "changes before and after the restart")
