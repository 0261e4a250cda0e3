"""Cases of `RecordStore`: reading, scanning, writing with conditions, and expiry."""

from __future__ import annotations

import asyncio

from strongroom.errors import RevisionConflict
from strongroom.storage import Feature, Record, Write
from strongroom.testing.trial import Trial, case, everything, get, holds, present, put, raises, same

KIB, MIB = 1024, 1024 * 1024

# Sorted by their UTF-8 bytes, which is not the order of UTF-16 or of any language.
KEYS = (
    *("\x01", "\n", "\n1", " ", "%", "*", "/", "10", "9", "?", "A", "A ", "B", "K", "Z", "[", "\\"),
    *("_", "a", "a\x01", "a\n2\n", "a ", "a%b", "a*", "a_b", "ab", "a\u0301", "a\ud7ff"),
    *("a\ue000", "a\uffff", "a\U00010000", "a\U0010ffff", "a\U0010ffffb", "b", "ss", "z", "~"),
    *("\x7f", "ß", "á", "İ", "\u212a", "\ud7ff", "\ue000", "\ufeff", "\uffff", "\U00010000"),
    *("😀", "😀a", "😁", "\U0010ffff", "\U0010ffff\U0010ffff"),
)


@case()
async def a_new_store_is_empty(trial: Trial) -> None:
    store = await trial.store()
    same(await store.read(["a", "b"]), [None, None], "reading keys that do not exist")
    same(await store.read([]), [], "reading no keys")
    same(await everything(store), {}, "scanning")
    same(await store.count(), 0, "counting")


@case()
async def a_record_comes_back_as_it_was_written(trial: Trial) -> None:
    store = await trial.store()
    for value in (b"", b"\0", bytes(range(256)), "ü".encode(), b"null", b"x" * 5000):
        [revision] = await store.apply([Write("key", value)])
        record = await present(store, "key")
        same((record.key, record.value), ("key", value), "key and value")
        same(record.revision, revision, "the revision, compared with what apply returned")
        same(record.expires, None, "the expiry of a record that has none")
        holds(type(record.value) is bytes, "a value is bytes")


@case()
async def values_of_any_size_come_back(trial: Trial) -> None:
    sizes = [size + by for size in (4 * KIB, 64 * KIB, MIB) for by in (-1, 0, 1)]
    store = await trial.store()
    for size in sizes:
        value = bytes(size % 251 for _ in range(16)) * (size // 16) + b"e" * (size % 16)
        await store.apply([Write(str(size), value)])
        holds((await present(store, str(size))).value == value, f"{size} bytes come back")
    same(await store.count(), len(sizes), "the count")


@case()
async def keys_differ_by_their_code_points(trial: Trial) -> None:
    store = await trial.store()
    await put(store, [(key, key.encode()) for key in reversed(KEYS)])
    same(await store.count(), len(KEYS), "all keys are different")
    records = await store.read(KEYS)
    same([r and r.value for r in records], [key.encode() for key in KEYS], "values, by key")


@case()
async def a_key_may_have_1024_bytes(trial: Trial) -> None:
    store = await trial.store()
    keys = ["x" * 1024, "x" * 1023 + "y", "😀" * 256]
    await put(store, [(key, b"v") for key in keys])
    same(sorted(await everything(store)), keys, "the longest keys")


@case()
async def reading_returns_records_in_the_order_of_the_keys_given(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"2")
    found = [record and record.value for record in await store.read(["b", "x", "a", "b"])]
    same(found, [b"2", None, b"1", b"2"], "keys out of order, absent and repeated")
    many = await store.read([f"absent-{number}" for number in range(3000)] + ["a"])
    same([r.key for r in many if r], ["a"], "a read of thousands of keys")


@case(Feature.ORDERED)
async def scans_go_in_the_order_of_the_utf8_bytes(trial: Trial) -> None:
    store = await trial.store()
    await put(store, [(key, b"") for key in sorted(KEYS, key=lambda key: key[::-1])])
    ordered = sorted(KEYS, key=str.encode)
    page = await store.scan()
    same([record.key for record in page.records], ordered, "forwards")
    page = await store.scan(reverse=True)
    same([record.key for record in page.records], ordered[::-1], "backwards")


@case()
async def a_prefix_is_taken_literally(trial: Trial) -> None:
    store = await trial.store()
    await put(store, [(key, b"") for key in KEYS])
    prefixes = ("", "a", "A", "a%", "%", "_", "*", "?", "[", "\\", "😀", "\ud7ff", "a\ud7ff")
    for prefix in (*prefixes, "\U0010ffff", "a\U0010ffff", "\uffff", "absent", "k"):
        wanted = sorted(key for key in KEYS if key.startswith(prefix))
        same(sorted(await everything(store, prefix)), wanted, f"the keys of prefix {prefix!r}")
        same(await store.count(prefix), len(wanted), f"the count of prefix {prefix!r}")


@case(Feature.ORDERED)
async def a_scan_starts_after_a_key_that_need_not_exist(trial: Trial) -> None:
    store = await trial.store()
    keys = [f"{letter}{number}" for letter in "abc" for number in range(4)] + ["b\U0010ffff"]
    await put(store, [(key, b"") for key in keys])
    for prefix in ("", "b", "b1", "x"):
        for after in ("", "a", "a9", "b", "b1", "b15", "b3", "b\U0010ffff", "c", "c3", "z"):
            for reverse in (False, True):
                wanted = [
                    key
                    for key in sorted(keys, reverse=reverse)
                    if key.startswith(prefix) and (key < after if reverse else key > after)
                ]
                page = await store.scan(prefix, after=after, reverse=reverse)
                found = [record.key for record in page.records]
                same(found, wanted, f"prefix {prefix!r}, after {after!r}, reverse {reverse}")


@case()
async def pages_end_at_the_limit_and_say_whether_more_follows(trial: Trial) -> None:
    store = await trial.store()
    await put(store, [(f"key{number}", b"") for number in range(7)])
    for limit in (1, 3, 6, 7, 8):
        seen: list[str] = []
        after = None
        while True:
            page = await store.scan("key", after=after, limit=limit)
            seen += [record.key for record in page.records]
            holds(0 < len(page.records) <= limit, f"a page has 1 to {limit} records")
            if not page.more:
                break
            same(len(page.records), limit, "the length of a page that is not the last")
            after = seen[-1]
        same(sorted(seen), [f"key{number}" for number in range(7)], f"pages of {limit}")


@case()
async def pages_end_at_the_maximum_of_bytes_but_have_one_record(trial: Trial) -> None:
    store = await trial.store()
    await put(store, [(key, b"x" * 100) for key in ("a", "b", "c", "d")] + [("e", b"y" * 1000)])
    sizes: list[int] = []
    after, more = None, True
    while more:
        page = await store.scan(after=after, max_bytes=250)
        total = sum(len(record.value) for record in page.records)
        holds(total <= 250 or len(page.records) == 1, "a page has 250 bytes at most, or one record")
        sizes.append(len(page.records))
        after, more = page.records[-1].key, page.more
    same(sum(sizes), 5, "records in all pages")
    page = await store.scan(limit=None, max_bytes=None)
    same((len(page.records), page.more), (5, False), "without limits")


@case()
async def a_scan_can_leave_out_the_values(trial: Trial) -> None:
    store = await trial.store(a=b"x" * 100, b=b"y")
    page = await store.scan(values=False, max_bytes=1)
    whole = await store.scan()
    bare = [(r.key, b"", r.revision, r.created, r.updated, r.expires) for r in whole.records]
    found = [(r.key, r.value, r.revision, r.created, r.updated, r.expires) for r in page.records]
    same(found, bare, "all but the values")


@case()
async def every_write_takes_a_higher_revision(trial: Trial) -> None:
    store = await trial.store()
    revisions = await put(store, [("a", b"1"), ("b", b"1"), ("a", b"2")])
    revisions += await store.apply([Write("a", None)])
    revisions += await store.apply([Write("a", b"3")])
    holds(revisions[0] >= 1, "the first revision is 1 or more")
    same(revisions, sorted(set(revisions)), "revisions across overwrite, deletion, new creation")
    same((await present(store, "a")).revision, revisions[-1], "the revision of the record")


@case()
async def deleting_removes_and_deleting_nothing_gives_0(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"2")
    same(await store.apply([Write("absent", None)]), [0], "deleting what is absent")
    [revision] = await store.apply([Write("a", None)])
    holds(revision > 0, "the deletion of a record has a revision")
    same(await store.apply([Write("a", None)]), [0], "deleting again")
    same(await everything(store), {"b": b"2"}, "what is left")
    same(await store.apply([]), [], "writing nothing")


@case()
async def times_come_from_the_clock(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    first = trial.clock()
    trial.clock.advance(1.5)
    await store.apply([Write("a", b"2")])
    record = await present(store, "a")
    same((record.created, record.updated), (first, trial.clock()), "created and updated")
    await store.apply([Write("a", None)])
    trial.clock.advance(1e-6)
    await store.apply([Write("a", b"3")])
    same((await present(store, "a")).created, trial.clock(), "created, after a deletion")


@case()
async def a_condition_that_does_not_hold_stores_nothing(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    revision = (await present(store, "a")).revision
    for write, found in (
        (Write("a", b"no", expect=0), revision),
        (Write("a", b"no", expect=revision + 1), revision),
        (Write("a", None, expect=0), revision),
        (Write("b", b"no", expect=revision), 0),
        (Write("b", None, expect=revision), 0),
    ):
        with raises(RevisionConflict, f"{write}") as raised:
            await store.apply([write])
        same(
            (raised[0].key, raised[0].expected, raised[0].found),
            (write.key, write.expect, found),
            "the conflict's key, expected and found",
        )
    same(await everything(store), {"a": b"1"}, "the records after conditions that failed")
    same((await present(store, "a")).revision, revision, "the revision after conditions failed")


@case()
async def a_condition_that_holds_lets_the_write_pass(trial: Trial) -> None:
    store = await trial.store()
    [first] = await store.apply([Write("a", b"1", expect=0)])
    [second] = await store.apply([Write("a", b"2", expect=first)])
    await store.apply([Write("a", None, expect=second)])
    same(
        await store.apply([Write("a", None, expect=0)]),
        [0],
        "deleting a record that must be absent",
    )
    await store.apply([Write("a", b"3", expect=0)])
    same(await everything(store), {"a": b"3"}, "the record at the end")


@case(Feature.ATOMIC)
async def a_batch_is_stored_completely_or_not_at_all(trial: Trial) -> None:
    store = await trial.store(a=b"1", b=b"2", c=b"3")
    with raises(RevisionConflict, "a batch whose last condition fails"):
        await store.apply(
            [Write("new", b"4"), Write("a", None), Write("b", b"no"), Write("c", b"no", expect=0)]
        )
    same(await everything(store), {"a": b"1", "b": b"2", "c": b"3"}, "after the failed batch")
    revisions = await store.apply([Write("c", b"5"), Write("absent", None), Write("a", None)])
    holds(revisions[0] > 0 and revisions[1] == 0 and revisions[2] > 0, "a revision for each write")
    holds(revisions[0] != revisions[2], "each write takes another revision")
    same(await everything(store), {"b": b"2", "c": b"5"}, "after the batch")


@case(Feature.ATOMIC)
async def checks_guard_records_that_are_not_written(trial: Trial) -> None:
    store = await trial.store(a=b"1")
    revision = (await present(store, "a")).revision
    await store.apply([Write("b", b"2")], checks={"a": revision, "absent": 0})
    for checks in ({"a": 0}, {"a": revision + 1}, {"absent": 1}, {"a": revision, "b": 0}):
        with raises(RevisionConflict, f"writing under {checks}"):
            await store.apply([Write("b", b"no")], checks=checks)
        with raises(RevisionConflict, f"checking {checks} alone"):
            await store.apply([], checks=checks)
    same(await store.apply([], checks={"a": revision}), [], "a check alone that holds")
    same(await everything(store), {"a": b"1", "b": b"2"}, "the records at the end")


@case()
async def one_of_many_writers_with_the_same_condition_wins(trial: Trial) -> None:
    store = await trial.store(a=b"start")
    revision = (await present(store, "a")).revision
    results = await asyncio.gather(
        *(store.apply([Write("a", str(n).encode(), expect=revision)]) for n in range(40)),
        return_exceptions=True,
    )
    losers = [result for result in results if isinstance(result, RevisionConflict)]
    winners = [n for n, result in enumerate(results) if isinstance(result, list)]
    same((len(winners), len(losers)), (1, 39), "winners and losers")
    same((await present(store, "a")).value, str(winners[0]).encode(), "the winner's value")


@case()
async def writes_at_the_same_time_are_all_stored(trial: Trial) -> None:
    store = await trial.store()
    results = await asyncio.gather(*(store.apply([Write(f"k{n}", b"v")]) for n in range(200)))
    revisions = {revision for [revision] in results}
    same(len(revisions), 200, "different revisions")
    same(await store.count("k"), 200, "records")
    failing = [store.apply([Write(f"k{n}", b"w", expect=None if n % 2 else 0)]) for n in range(40)]
    results_ = await asyncio.gather(*failing, return_exceptions=True)
    failed = [n for n, result in enumerate(results_) if isinstance(result, RevisionConflict)]
    same(failed, list(range(0, 40, 2)), "only those fail whose condition does not hold")
    records = await everything(store)
    same([n for n in range(40) if records[f"k{n}"] == b"w"], list(range(1, 40, 2)), "the others")


@case(Feature.ATOMIC)
async def a_snapshot_never_shows_half_of_a_batch(trial: Trial) -> None:
    store = await trial.store(a=b"0", b=b"0")

    async def write() -> None:
        for number in range(1, 60):
            value = str(number).encode()
            await store.apply([Write("a", value), Write("b", value)])

    writing = asyncio.create_task(write())
    while not writing.done():
        values = await everything(store)
        same(values["a"], values["b"], "two records that are always written together")
        await asyncio.sleep(0)
    await writing


@case()
async def a_cancelled_write_is_stored_completely_or_not_at_all(trial: Trial) -> None:
    store = await trial.store()
    atomic = Feature.ATOMIC in store.features
    for turns in range(30):
        value = str(turns).encode()
        writes = [Write("a", value), Write("b", value)] if atomic else [Write("a", value)]
        task = asyncio.create_task(store.apply(writes))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.apply([Write("next", value)])
        a, b, following = await store.read(["a", "b", "next"])
        if atomic:
            same(a and a.value, b and b.value, "both halves of a cancelled batch")
        if not task.cancelled():
            same(a and a.value, value, "a write that came back before its cancellation")
        same(following and following.value, value, "the write after the cancelled one")


# --- expiry ---------------------------------------------------------------------------------------


@case(Feature.TTL)
async def a_record_exists_until_the_microsecond_of_its_expiry(trial: Trial) -> None:
    stores = [await trial.store(stays=b"1") for _ in range(3)]  # one for each kind of first call
    expires = trial.clock() + 1_000_000
    for store in stores:
        await store.apply([Write("goes", b"2", expires=expires)])
        same((await present(store, "goes")).expires, expires, "the expiry of the record")
    trial.clock.now = expires - 1
    same(sorted(await everything(stores[0])), ["goes", "stays"], "one microsecond before")
    trial.clock.now = expires
    same(await get(stores[0], "goes"), None, "reading at that microsecond")
    same(await everything(stores[1]), {"stays": b"1"}, "scanning at that microsecond")
    same(await stores[2].count(), 1, "counting at that microsecond")


@case(Feature.TTL)
async def an_expired_record_is_absent_for_conditions_and_deletions(trial: Trial) -> None:
    store = await trial.store()
    soon = trial.clock() + 1
    revisions = [
        (await store.apply([Write(key, b"1", expires=soon)]))[0] for key in ("a", "b", "c")
    ]
    trial.clock.now = soon
    same(await store.apply([Write("a", None)]), [0], "deleting an expired record")
    with raises(RevisionConflict, "a condition on an expired record's revision") as raised:
        await store.apply([Write("b", b"no", expect=revisions[1])])
    same(raised[0].found, 0, "what the conflict found")
    trial.clock.advance(1)
    [revision] = await store.apply([Write("c", b"2", expect=0)])
    record = await present(store, "c")
    same(record, Record("c", b"2", revision, trial.clock(), trial.clock()), "written again")
    holds(revision > revisions[2], "its revision is higher than that of the expired one")


@case(Feature.TTL)
async def a_later_write_decides_the_expiry_again(trial: Trial) -> None:
    store = await trial.store()
    soon, later = trial.clock() + 10, trial.clock() + 100
    for key in ("stays", "longer", "goes"):
        await store.apply([Write(key, b"1", expires=soon)])
    await store.apply([Write("stays", b"2")])
    await store.apply([Write("longer", b"2", expires=later)])
    trial.clock.now = soon
    same(sorted(await everything(store)), ["longer", "stays"], "after the first expiry")
    trial.clock.now = later
    same(await everything(store), {"stays": b"2"}, "after the second expiry")
    await store.apply([Write("past", b"3", expires=later)])
    same(await get(store, "past"), None, "a record that has expired when it is written")


@case(Feature.TOUCH, Feature.TTL)
async def a_touch_moves_the_expiry_and_nothing_else(trial: Trial) -> None:
    store = await trial.store(never=b"1")
    soon, later = trial.clock() + 10, trial.clock() + 100
    for key in ("later", "sooner", "stays", "goes"):
        await store.apply([Write(key, b"1", expires=later if key == "sooner" else soon)])
    before = {record.key: record for record in (await store.scan()).records}
    moved = {"later": later, "sooner": soon, "stays": None, "never": later}
    trial.clock.advance(0.000001)
    for key, expires in moved.items():
        await store.read([key])  # into a cache, if there is one
        same(await store.touch(key, expires), True, "touching a record")
        old = before[key]
        expected = Record(key, old.value, old.revision, old.created, old.updated, expires)
        same(await present(store, key), expected, "the record after the touch")
    trial.clock.now = soon
    same(sorted(await everything(store)), ["later", "never", "stays"], "after the first expiry")
    trial.clock.now = later
    same(await everything(store), {"stays": b"1"}, "after the second expiry")


@case(Feature.TOUCH, Feature.TTL)
async def a_touch_brings_nothing_back(trial: Trial) -> None:
    store = await trial.store(deleted=b"1")
    soon = trial.clock() + 1
    await store.apply([Write("goes", b"1", expires=soon), Write("deleted", None)])
    trial.clock.now = soon
    for key in ("goes", "deleted", "absent"):
        same(await store.touch(key, None), False, "touching what is not there")
        same(await get(store, key), None, "and reading it")
    same(await store.count(), 0, "the count")


@case(Feature.TOUCH, Feature.TTL)
async def a_write_after_a_touch_continues_the_record(trial: Trial) -> None:
    store = await trial.store()
    soon = trial.clock() + 10
    [revision] = await store.apply([Write("key", b"1", expires=soon)])
    created = (await present(store, "key")).created
    await store.touch("key", None)
    trial.clock.now = soon
    [newer] = await store.apply([Write("key", b"2", expect=revision)])
    record = await present(store, "key")
    same(record, Record("key", b"2", newer, created, trial.clock()), "written after the touch")


@case(Feature.TOUCH, Feature.TTL, Feature.DURABLE)
async def a_touch_is_there_after_a_restart(trial: Trial) -> None:
    name = trial.name()
    store = await trial.provider.open(name)
    await store.apply([Write("key", b"1", expires=trial.clock() + 10)])
    await store.touch("key", trial.clock() + 100)
    store = await trial.reopen(name)
    same((await present(store, "key")).expires, trial.clock() + 100, "the expiry")


@case(Feature.TTL)
async def expired_records_do_not_count_in_pages(trial: Trial) -> None:
    store = await trial.store()
    soon = trial.clock() + 1
    for number in range(20):
        await store.apply([Write(f"{number:02}", b"v", expires=None if number % 5 == 4 else soon)])
    trial.clock.now = soon
    page = await store.scan(limit=4)
    same(sorted(r.key for r in page.records), ["04", "09", "14", "19"], "a page of 4")
    holds(not page.more, "there are no more after the last that has not expired")
    page = await store.scan(limit=2)
    same((len(page.records), page.more), (2, True), "a page of 2, and more")


# --- slow -----------------------------------------------------------------------------------------


@case(slow=True)
async def a_value_of_64_mib_comes_back(trial: Trial) -> None:
    value = bytes(range(256)) * (64 * MIB // 256)
    store = await trial.store(small=b"1", large=value)
    record = await get(store, "large")
    holds(record is not None and record.value == value, "64 MiB come back")
    keys = await store.scan(values=False)
    same(sorted(record.key for record in keys.records), ["large", "small"], "the keys")
    [revision] = await store.apply([Write("large", None)])
    holds(revision > 0, "it can be deleted")
    same(await everything(store), {"small": b"1"}, "what is left")


@case(Feature.ORDERED, slow=True)
async def a_long_scan_sees_every_key_that_exists_throughout(trial: Trial) -> None:
    store = await trial.store()
    names = [f"{number:05}" for number in range(5000)]
    await asyncio.gather(*(store.apply([Write(name, b"v" * 100)]) for name in names))
    seen: list[str] = []
    after, more, number = None, True, 0
    while more:
        page = await store.scan(after=after)
        seen += [record.key for record in page.records if "-" not in record.key]
        after, more, number = page.records[-1].key, page.more, number + 1
        await put(store, [(f"{number * 199:05}-between", b""), (f"{number:05}", b"changed")])
    same(seen, names, "each key once, in order, although others were added in between")
