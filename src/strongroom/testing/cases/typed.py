"""Cases of `KeyValueStore` on the provider: every method, and concurrent callers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, SecretStr

from strongroom.errors import (
    InvalidNamespace,
    KeyExists,
    KeyMissing,
    NotSupported,
    RecordInvalid,
    RevisionConflict,
    ValueTooLarge,
)
from strongroom.storage import Change, Feature, KeyValueStore
from strongroom.storage.records import MAX_VALUE_BYTES
from strongroom.testing.trial import Trial, case, holds, raises, same


class Item(BaseModel):
    """The model that the cases store."""

    n: int
    note: str | None = None


class Priced(BaseModel):
    """A model that an Item does not fit."""

    n: int
    price: float


class Sample(BaseModel):
    """Values that are easily stored as others."""

    text: str = "é e\u0301 \U0001f600 \x7f\n"
    whole: float = 2.0
    negative: float = -0.0
    large: int = 2**70
    numbers: dict[str, int | float | None] = {"z": 1, "a": 1.0, "": None}
    nested: list[list[bool]] = [[], [True]]


class Login(BaseModel):
    """A model with a secret."""

    password: SecretStr


class Other(str):
    """A string that is another one when it is formatted, as members of an Enum with str are."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another"

    def __format__(self, _: str) -> str:
        return "another"


async def _items(trial: Trial, **numbers: int) -> KeyValueStore[Item]:
    items = await trial.provider.get_kv_store(Item, trial.name())
    for key, n in numbers.items():
        await items.set(key, Item(n=n))
    return items


def _more(item: Item) -> Item:
    return Item(n=item.n + 1)


@case()
async def set_and_get_give_back_the_model(trial: Trial) -> None:
    items = await _items(trial)
    first = await items.set("a", Item(n=1))
    second = await items.set("a", Item(n=2, note="ü"), if_revision=first)
    holds(second > first, "set() returns a higher revision")
    same(await items.get("a"), Item(n=2, note="ü"), "get()")
    same(await items.get("absent"), None, "get() of an absent key")
    with raises(RevisionConflict, "set() at an older revision"):
        await items.set("a", Item(n=3), if_revision=first)
    with raises(RevisionConflict, "set() of a key that must not exist"):
        await items.set("a", Item(n=3), if_revision=0)


@case()
async def a_model_comes_back_with_every_value_as_it_was(trial: Trial) -> None:
    name = trial.name()
    samples = await trial.provider.get_kv_store(Sample, name)
    await samples.set("a", Sample())
    same(repr(await samples.get("a")), repr(Sample()), "a model with values of many types")


@case()
async def a_secret_comes_back_as_a_secret(trial: Trial) -> None:
    logins = await trial.provider.get_kv_store(Login, trial.name())
    await logins.set("a", Login(password=SecretStr("hunter2")))
    found = await logins.get("a")
    same(repr(found), "Login(password=SecretStr('**********'))", "a secret")
    same(found and found.password.get_secret_value(), "hunter2", "what the secret hides")


@case()
async def a_string_of_a_subclass_is_the_string_that_it_equals(trial: Trial) -> None:
    name, provider = trial.name(), trial.provider
    items = await provider.get_kv_store(Item, Other(name))
    await items.set(Other("a"), Item(n=1))
    same(await items.get("a"), Item(n=1), "a record whose key is of a subclass of str")
    holds(name in await provider.namespaces(), "a name of a subclass of str is listed plainly")
    await provider.drop(Other(name))
    holds(name not in await provider.namespaces(), "drop() takes a name of a subclass of str")
    not_a_name: Any = 5
    with raises(InvalidNamespace, "drop() of what is not a string"):
        await provider.drop(not_a_name)


@case()
async def an_entry_has_revision_and_times(trial: Trial) -> None:
    items = await _items(trial)
    await items.set("a", Item(n=1))
    trial.clock.advance(60)
    revision = await items.set("a", Item(n=2))
    entry = await items.entry("a")
    if entry is None:
        raise AssertionError("entry() finds no record")
    same((entry.key, entry.value, entry.revision), ("a", Item(n=2), revision), "the entry")
    same(
        entry.updated - entry.created, timedelta(seconds=60), "the time between created and updated"
    )
    same((entry.updated_us, entry.expires), (trial.clock(), None), "updated and expires")
    same(await items.entry("absent"), None, "entry() of an absent key")


@case()
async def create_update_and_delete_distinguish_present_from_absent(trial: Trial) -> None:
    items = await _items(trial)
    with raises(KeyMissing, "update() of an absent key"):
        await items.update("a", Item(n=0))
    same(await items.delete("a"), False, "delete() of an absent key")
    await items.create("a", Item(n=1))
    with raises(KeyExists, "create() of a present key"):
        await items.create("a", Item(n=2))
    revision = await items.update("a", Item(n=3))
    with raises(RevisionConflict, "delete() at another revision"):
        await items.delete("a", if_revision=revision + 1)
    same(await items.get("a"), Item(n=3), "the value")
    same(await items.delete("a", if_revision=revision), True, "delete() of a present key")
    same(await items.list(), {}, "list() at the end")


@case()
async def list_gives_all_of_a_prefix_in_key_order(trial: Trial) -> None:
    items = await _items(trial, b2=4, a=1, b1=3, c=5)
    same(list(await items.list()), ["a", "b1", "b2", "c"], "the keys of list()")
    same(await items.list("b"), {"b1": Item(n=3), "b2": Item(n=4)}, "list() of a prefix")
    same((await items.count(), await items.count("b")), (4, 2), "count()")


@case(Feature.ORDERED)
async def scan_goes_through_more_than_a_page(trial: Trial) -> None:
    items = await _items(trial, a=1, z=2)
    await asyncio.gather(*(items.set(f"k{n:03}", Item(n=n)) for n in range(600)))
    names = [f"k{n:03}" for n in range(600)]
    same([entry.key async for entry in items.scan("k")], names, "scan()")
    same([entry.value.n async for entry in items.scan("k", reverse=True)][:2], [599, 598], "back")
    same([key async for key in items.keys("k", after="k297", limit=3)], names[298:301], "keys()")
    found = [key async for key in items.keys("k", after="k300", limit=300, reverse=True)]
    same(found, names[299::-1], "keys() backwards over two pages")
    same([key async for key in items.keys(limit=0)], [], "keys() with a limit of 0")
    same([key async for key in items.keys(limit=5000)][-1], "z", "keys() with a high limit")


@case()
async def many_records_are_read_in_one_call(trial: Trial) -> None:
    items = await _items(trial, a=1, b=2)
    same(await items.get_many(["b", "x", "a"]), {"b": Item(n=2), "a": Item(n=1)}, "get_many()")
    same(await items.get_many([]), {}, "get_many() of nothing")


@case(Feature.ATOMIC)
async def many_records_are_written_as_one(trial: Trial) -> None:
    items = await _items(trial, a=1)
    revisions = await items.set_many({"b": Item(n=2), "a": Item(n=3)})
    same(list(revisions), ["b", "a"], "the keys of what set_many() returns")
    entry = await items.entry("b")
    same(entry and entry.revision, revisions["b"], "a revision that set_many() returned")
    same(await items.delete_many(["a", "x", "a", "b"]), 2, "delete_many()")
    same(await items.set_many({}), {}, "set_many() of nothing")
    same(await items.count(), 0, "count() at the end")


@case()
async def modify_counts_every_call_of_many_at_once(trial: Trial) -> None:
    name = trial.name()
    stores = [await trial.provider.get_kv_store(Item, name) for _ in range(3)]
    await asyncio.gather(*(stores[n % 3].modify("a", _more, default=Item(n=0)) for n in range(150)))
    same(await stores[0].get("a"), Item(n=150), "the sum of 150 modifications")
    with raises(KeyMissing, "modify() of an absent key without a default"):
        await stores[0].modify("b", _more)


@case(Feature.ATOMIC)
async def a_transaction_sees_its_own_writes_and_others_do_not(trial: Trial) -> None:
    items = await _items(trial, a=1, b=2)
    async with items.transaction() as transaction:
        await transaction.set("a", Item(n=10))
        await transaction.delete("b")
        same(await transaction.get("a"), Item(n=10), "a value that the transaction wrote")
        same(await transaction.get("b"), None, "a record that the transaction deleted")
        same(await items.list(), {"a": Item(n=1), "b": Item(n=2)}, "what others see before its end")
    same(await items.list(), {"a": Item(n=10)}, "after the transaction")
    with raises(ZeroDivisionError, "an error within a transaction"):
        async with items.transaction() as transaction:
            await transaction.set("a", Item(n=11 // 0))
    same(await items.list(), {"a": Item(n=10)}, "after a transaction that failed")


@case(Feature.ATOMIC)
async def a_transaction_fails_when_what_it_read_has_changed(trial: Trial) -> None:
    items = await _items(trial, a=1)
    for read, change in (("a", "a"), ("absent", "absent")):
        with raises(RevisionConflict, f"a transaction that read {read!r}"):
            async with items.transaction() as transaction:
                await transaction.get(read)
                await transaction.set("target", Item(n=1))
                await items.set(change, Item(n=5))
    same(await items.get("target"), None, "the write of a transaction that failed")


@case(Feature.ATOMIC)
async def transfers_at_the_same_time_keep_the_sum(trial: Trial) -> None:
    items = await _items(trial, a=100, b=100, c=100)

    async def transfer(source: str, target: str) -> None:
        while True:
            try:
                async with items.transaction() as transaction:
                    one, other = await transaction.get(source), await transaction.get(target)
                    if one and other:
                        await transaction.set(source, Item(n=one.n - 1))
                        await transaction.set(target, Item(n=other.n + 1))
            except RevisionConflict:
                await asyncio.sleep(0)
            else:
                return

    pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "c")] * 8
    await asyncio.gather(*(transfer(source, target) for source, target in pairs))
    numbers = {key: item.n for key, item in (await items.list()).items()}
    same(numbers, {"a": 92, "b": 100, "c": 108}, "the accounts at the end")


@case(Feature.TTL)
async def a_ttl_is_in_seconds_or_a_timedelta(trial: Trial) -> None:
    items = await _items(trial)
    await items.set("a", Item(n=1), ttl=1.5)
    await items.create("b", Item(n=2), ttl=timedelta(seconds=2))
    entry = await items.entry("a")
    same(entry and entry.expires_us, trial.clock() + 1_500_000, "expires")
    trial.clock.advance(1.499999)
    same(sorted(await items.list()), ["a", "b"], "just before the first expiry")
    trial.clock.advance(0.000001)
    same(await items.list(), {"b": Item(n=2)}, "at the first expiry")
    await items.create("a", Item(n=3))
    trial.clock.advance(1000)
    same(await items.list(), {"a": Item(n=3)}, "created again, without a ttl")


@case(Feature.TTL)
async def update_and_modify_keep_the_expiry_and_set_does_not(trial: Trial) -> None:
    items = await _items(trial)
    for key in ("set", "update", "modify"):
        await items.set(key, Item(n=1), ttl=10)
    await items.set("set", Item(n=2))
    await items.update("update", Item(n=2))
    await items.modify("modify", _more)
    trial.clock.advance(10)
    same(await items.list(), {"set": Item(n=2)}, "after 10 seconds")


@case(Feature.TTL, Feature.TOUCH)
async def touch_moves_the_expiry_alone_or_before_a_get(trial: Trial) -> None:
    items = await _items(trial, never=0)
    for key in ("touched", "got", "goes"):
        await items.set(key, Item(n=1), ttl=10)
    trial.clock.advance(9)
    same(await items.touch("touched", timedelta(seconds=20)), True, "touching a record")
    same(await items.get("got", touch=5), Item(n=1), "getting and touching it")
    same(await items.touch("never", 5), True, "touching one that never expired")
    trial.clock.advance(1)
    same(sorted(await items.list()), ["got", "never", "touched"], "after 10 seconds")
    same(await items.touch("goes", 5), False, "touching one that has expired")
    same(await items.get("goes", touch=5), None, "getting and touching it")
    same(await items.touch("touched", None), True, "giving it no expiry")
    trial.clock.advance(100)
    same(await items.list(), {"touched": Item(n=1)}, "after 110 seconds")


@case(Feature.WATCH)
async def watch_continues_from_the_last_revision_seen(trial: Trial) -> None:
    items = await _items(trial, a=1, b=2)
    cursor = 0
    async with asyncio.timeout(10), aclosing(items.watch(after=0)) as changes:
        async for change in changes:
            cursor = change.revision
            break
    revision = await items.set("a", Item(n=3))
    seen: list[Change[Item]] = []
    async with asyncio.timeout(10), aclosing(items.watch(after=cursor)) as changes:
        async for change in changes:
            seen.append(change)
            if change.value is None:
                break
            if len(seen) == 2:
                await items.delete("b")
    same(
        [(change.key, change.value) for change in seen],
        [("b", Item(n=2)), ("a", Item(n=3)), ("b", None)],
        "the changes after a restart of the watcher",
    )
    same(seen[1].revision, revision, "the revision of a change")


@case()
async def what_is_not_declared_is_not_supported(trial: Trial) -> None:
    items = await _items(trial)
    features = (await trial.store()).features
    if Feature.TTL not in features:
        with raises(NotSupported, "ttl="):
            await items.set("a", Item(n=1), ttl=1)
    if Feature.TOUCH not in features:
        with raises(NotSupported, "touch()"):
            await items.touch("a", 1)
        with raises(NotSupported, "get(touch=)"):
            await items.get("a", touch=1)
        with raises(NotSupported, "RecordStore.touch()"):
            await (await trial.store()).touch("a", None)
    if Feature.WATCH not in features:
        with raises(NotSupported, "watch()"):
            await anext(aiter(items.watch()))
        with raises(NotSupported, "changes()"):
            await (await trial.store()).changes(None)
    if Feature.ATOMIC not in features:
        with raises(NotSupported, "transaction()"):
            items.transaction()
        with raises(NotSupported, "set_many()"):
            await items.set_many({"a": Item(n=1)})
    if Feature.ORDERED not in features:
        with raises(NotSupported, "reverse="):
            await anext(aiter(items.scan(reverse=True)))
    same(await items.list(), {}, "nothing was stored")


@case()
async def a_record_that_does_not_fit_is_an_error_and_never_left_out(trial: Trial) -> None:
    name = trial.name()
    await KeyValueStore(await trial.provider.open(name), Item, name).set("a", Item(n=1))
    priced = await trial.provider.get_kv_store(Priced, name)
    await priced.set("b", Priced(n=1, price=2.5))
    for what, call in (("get", priced.get("a")), ("list", priced.list())):
        with raises(RecordInvalid, f"{what}() of a record that does not fit") as raised:
            await call
        same((raised[0].key, raised[0].field), ("a", "price"), "the record and its field")
    with raises(RecordInvalid, "scan() over a record that does not fit"):
        async for _ in priced.scan():
            pass


@case(slow=True)
async def a_record_of_more_than_64_mib_is_refused(trial: Trial) -> None:
    items = await _items(trial, a=1)
    with raises(ValueTooLarge, "a record that is too large"):
        await items.set("a", Item(n=2, note="x" * MAX_VALUE_BYTES))
    same(await items.get("a"), Item(n=1), "the record after it was refused")
    await items.set("a", Item(n=2, note="x" * (MAX_VALUE_BYTES - 100)))
    item = await items.get("a")
    holds(
        item and item.note and len(item.note) == MAX_VALUE_BYTES - 100, "a large record comes back"
    )
