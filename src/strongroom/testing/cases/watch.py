"""Cases of `RecordStore.changes`: nothing is missed or repeated, deletions and expiry included."""

from __future__ import annotations

import asyncio
import random

from strongroom.errors import WatchExpired
from strongroom.storage import Changes, Feature, RecordStore, Write
from strongroom.storage.records import TOMBSTONE_AGE
from strongroom.testing.trial import Trial, case, everything, holds, present, put, raises, same


def _seen(changes: Changes) -> list[tuple[str, bytes | None]]:
    return [(c.key, None if c.record is None else c.record.value) for c in changes.changes]


async def _waiting(task: asyncio.Task[Changes]) -> None:
    """Give a call of `changes` time to start waiting."""
    done, _ = await asyncio.wait([task], timeout=0.05)
    holds(not done, "changes() waits until there is a change")


@case(Feature.WATCH)
async def changes_come_once_for_each_key_in_the_order_of_revisions(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"1")
    start = await store.changes(None)
    same(start.changes, [], "changes after None")
    same(start.cursor, (await present(store, "b")).revision, "the current revision")
    await put(store, [("c", b"1"), ("a", b"2"), ("c", b"2"), ("d", b"1"), ("a", b"3")])
    changes = await store.changes(start.cursor)
    same(_seen(changes), [("c", b"2"), ("d", b"1"), ("a", b"3")], "the latest states, in order")
    for change in changes.changes:
        same(change.record, await present(store, change.key), "the record of a change")
        holds(change.record and change.record.revision == change.revision, "one revision")
    same(changes.cursor, changes.changes[-1].revision, "the cursor at the end")


@case(Feature.WATCH)
async def deletions_are_changes(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"1", c=b"1")
    cursor = (await store.changes(None)).cursor
    [deleted] = await store.apply([Write("b", None)])
    await store.apply([Write("a", None)])
    await store.apply([Write("absent", None)])
    await store.apply([Write("a", b"2")])
    changes = await store.changes(cursor)
    same(_seen(changes), [("b", None), ("a", b"2")], "a deletion, and one that was undone")
    same(changes.changes[0].revision, deleted, "the revision of a deletion")
    await store.apply([Write("b", None)])
    await store.apply([Write("c", None)])
    same(_seen(await store.changes(cursor))[0], ("b", None), "a record that was deleted twice")


@case(Feature.WATCH)
async def a_watcher_from_0_sees_every_existing_record(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"1", c=b"1")
    await store.apply([Write("b", None)])
    await put(store, [("a", b"2")])
    found = [change for change in _seen(await store.changes(0)) if change[1] is not None]
    same(found, [("c", b"1"), ("a", b"2")], "existing records, in the order of revisions")
    trial.clock.now += 2 * TOMBSTONE_AGE
    await store.apply([Write("c", None)])
    found = [change for change in _seen(await store.changes(0)) if change[1] is not None]
    same(found, [("a", b"2")], "after 0, which is never too old")


@case(Feature.WATCH)
async def pages_of_changes_miss_and_repeat_nothing(trial: Trial) -> None:
    store = await trial.store()
    await put(store, [(f"{'ab'[n % 2]}{n}", b"v") for n in range(20)])
    for prefix in ("", "a"):
        wanted = [f"{'ab'[n % 2]}{n}" for n in range(20) if prefix in "ab"[n % 2]]
        seen: list[str] = []
        cursor = 0
        while len(seen) < len(wanted):
            changes = await store.changes(cursor, prefix=prefix, limit=3)
            holds(0 < len(changes.changes) <= 3, "a page has 1 to 3 changes")
            holds(changes.cursor >= changes.changes[-1].revision, "the cursor covers the page")
            seen += [change.key for change in changes.changes]
            cursor = changes.cursor
        same(seen, wanted, f"changes of prefix {prefix!r}")


@case(Feature.WATCH)
async def a_waiting_watcher_wakes_for_its_prefix(trial: Trial) -> None:
    store = await trial.store(a1=b"1")
    cursor = (await store.changes(None)).cursor
    task = asyncio.create_task(store.changes(cursor, prefix="a"))
    await _waiting(task)
    await put(store, [("b1", b"other"), ("A1", b"other")])
    await _waiting(task)
    await put(store, [("a2", b"new")])
    changes = await task
    same(_seen(changes), [("a2", b"new")], "what woke the watcher")
    task = asyncio.create_task(store.changes(changes.cursor, prefix="a"))
    await _waiting(task)
    await store.apply([Write("a1", None)])
    same(_seen(await task), [("a1", None)], "the deletion that woke it again")


@case(Feature.WATCH)
async def a_cancelled_watcher_disturbs_nobody(trial: Trial) -> None:
    store = await trial.store()
    tasks = [asyncio.create_task(store.changes(0)) for _ in range(3)]
    await _waiting(tasks[0])
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    holds(tasks[0].cancelled(), "the cancelled watcher ends as cancelled")
    await put(store, [("a", b"1")])
    same([_seen(await task) for task in tasks[1:]], [[("a", b"1")]] * 2, "the other watchers")
    same(_seen(await store.changes(0)), [("a", b"1")], "a watcher that comes later")


@case(Feature.WATCH, Feature.TTL)
async def expiry_is_a_change(trial: Trial) -> None:
    store = await trial.store()
    expires = trial.clock() + 1_000_000
    await store.apply([Write("goes", b"1", expires=expires)])
    cursor = (await store.changes(None)).cursor
    trial.clock.now = expires
    changes = await store.changes(cursor)
    same(_seen(changes), [("goes", None)], "the change of a record that has expired")
    await put(store, [("goes", b"2")])
    same(_seen(await store.changes(changes.cursor)), [("goes", b"2")], "written again")
    same(
        _seen(await store.changes(cursor)), [("goes", b"2")], "for a watcher with the older cursor"
    )


@case(Feature.WATCH, Feature.TTL)
async def a_waiting_watcher_sees_a_record_expire(trial: Trial) -> None:
    store = await trial.store()
    await store.apply([Write("goes", b"1", expires=trial.clock() + 3_600_000_000)])
    task = asyncio.create_task(store.changes((await store.changes(None)).cursor))
    await _waiting(task)
    trial.clock.advance(3600)
    async with asyncio.timeout(5):  # the store must check the clock once a second
        same(_seen(await task), [("goes", None)], "the expiry")


@case(Feature.WATCH, Feature.TTL, Feature.TOUCH)
async def a_touch_is_no_change_and_its_expiry_is_one(trial: Trial) -> None:
    store = await trial.store(goes=b"1")
    cursor = (await store.changes(None)).cursor
    task = asyncio.create_task(store.changes(cursor))
    await _waiting(task)
    await store.touch("goes", trial.clock() + 3_600_000_000)
    same((await store.changes(None)).cursor, cursor, "the cursor after a touch")
    await _waiting(task)
    walked = await store.changes(0)
    record = walked.changes[0].record
    same(record and record.expires, trial.clock() + 3_600_000_000, "the expiry in a walk from 0")
    trial.clock.advance(3600)
    async with asyncio.timeout(5):
        same(_seen(await task), [("goes", None)], "the expiry")


@case(Feature.WATCH)
async def a_cursor_is_good_or_expired_but_never_wrong(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"1", c=b"1")
    cursor = (await store.changes(None)).cursor
    await store.apply([Write("a", None)])
    newer = (await store.changes(None)).cursor
    trial.clock.now += TOMBSTONE_AGE - 1
    same(_seen(await store.changes(cursor)), [("a", None)], "a deletion just under a day old")
    trial.clock.now += TOMBSTONE_AGE
    await store.apply([Write("b", None)])
    try:
        changes = _seen(await store.changes(cursor))
    except WatchExpired:
        pass
    else:
        same(changes, [("a", None), ("b", None)], "changes after an old cursor")
    same(_seen(await store.changes(newer)), [("b", None)], "changes after a newer cursor")
    walk = await store.changes(1, since=newer)
    holds(("c", b"1") in _seen(walk), "a walk from 0 continues from an early revision")


@case(Feature.WATCH)
async def a_cursor_from_the_future_has_expired(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    cursor = (await store.changes(None)).cursor
    with raises(WatchExpired, "a cursor that this store never gave"):
        await store.changes(cursor + 1000)


@case(Feature.WATCH)
async def a_watcher_that_starts_again_misses_and_repeats_nothing(trial: Trial) -> None:
    store = await trial.store()
    seen: dict[str, bytes | None] = {}
    revisions: list[int] = []
    writing = asyncio.create_task(_scribble(store))
    cursor = 0
    while True:
        finished = writing.done()
        watch = asyncio.create_task(store.changes(cursor, limit=5))
        await asyncio.wait([watch], timeout=0.05)
        if not watch.done():  # stop the watcher while it waits
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            if finished:
                break
            continue
        changes = watch.result()
        revisions += [change.revision for change in changes.changes]
        seen |= dict(_seen(changes))
        cursor = changes.cursor
    await writing
    present = {key: value for key, value in seen.items() if value is not None}
    same(present, await everything(store), "what the watcher knows at the end")
    same(revisions, sorted(set(revisions)), "revisions, in order and without repetition")


async def _scribble(store: RecordStore) -> None:
    """Write and delete among few keys, the same way every time."""
    chance = random.Random(7)  # noqa: S311  # not a secret
    for number in range(300):
        key = f"k{chance.randrange(12)}"
        value = None if chance.random() < 0.3 else str(number).encode()
        await store.apply([Write(key, value)])
        if number % 10 == 0:
            await asyncio.sleep(0.001)
