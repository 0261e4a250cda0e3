"""Cases of stores of bytes, of keys that are tuples, and of batches with conditions."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.errors import InvalidKey, RecordInvalid, RevisionConflict
from strongroom.storage import Delete, Feature, Key, KeyValueStore, Set
from strongroom.testing.trial import Trial, case, raises, same

Batch = Sequence[Set[bytes] | Delete]

BYTES = [b"", b"\0", b"\0\1\2\n", bytes(range(256)), b"\2\0", b"{}", b"x" * 100_000]
TUPLES = [
    Key(),
    Key(b"", "later"),
    Key(b"\0"),
    Key(b"\0\xff"),
    Key(-(2**70)),
    Key(-256),
    Key(-255),
    Key(-1),
    Key(0),
    Key(9, "z"),
    Key(10),
    Key(255),
    Key(2**70),
    Key(""),
    Key("", 1),
    Key("\0"),
    Key("\1", -1),
    Key("\2"),
    Key("a"),
    Key("a", b"x"),
    Key("a", 5),
    Key("a", "b"),
    Key("a\0"),
    Key("a b"),
    Key("ab"),
    Key("\ue000"),
    Key("\U0001f600"),
]
"""In their order."""


async def _blobs(trial: Trial, *keys: str) -> KeyValueStore[bytes]:
    blobs = await trial.provider.get_bytes_store(trial.name(), owner="conformance/1")
    for key in keys:
        await blobs.set(key, repr(key).encode())
    return blobs


async def _keys(blobs: KeyValueStore[bytes]) -> list[str]:
    return list(await blobs.list())


@case()
async def bytes_come_back_as_they_were_given(trial: Trial) -> None:
    name = trial.name()
    blobs = await trial.provider.get_bytes_store(name, owner="conformance/1")
    for number, value in enumerate(BYTES):
        await blobs.set(f"key {number}", value)
        same(await blobs.get(f"key {number}"), value, "get()")
    same(list((await blobs.list()).values()), BYTES, "list()")
    other = await trial.provider.get_bytes_store(name, owner="another/1")
    with raises(RecordInvalid, "get() for another owner"):
        await other.get("key 1")


@case(Feature.ORDERED)
async def tuple_keys_sort_as_their_tuples(trial: Trial) -> None:
    blobs = await _blobs(trial, *reversed(TUPLES))
    same(await _keys(blobs), TUPLES, "the keys in their order")
    same([entry.key async for entry in blobs.scan(reverse=True)], TUPLES[::-1], "and backwards")
    for key in TUPLES:
        same(await blobs.get(key), repr(key).encode(), f"get() of {key!r}")


@case(Feature.ORDERED)
async def each_prefix_of_a_tuple_is_a_range(trial: Trial) -> None:
    blobs = await _blobs(trial, "a", "a.b", "plain", *TUPLES)
    for prefix in TUPLES:
        wanted = [key for key in TUPLES if key.parts[: len(prefix.parts)] == prefix.parts]
        same([key async for key in blobs.keys(prefix)], wanted, f"the keys within {prefix!r}")
        same(await blobs.count(prefix), len(wanted), f"their number within {prefix!r}")
        groups = dict.fromkeys(key.first(len(prefix.parts) + 1) for key in wanted if key != prefix)
        same([group async for group in blobs.groups(prefix)], [*groups], f"groups of {prefix!r}")
    same([key async for key in blobs.keys("a")], ["a", "a.b"], "the keys that are plain strings")
    with raises(InvalidKey, "a plain string that looks like a tuple"):
        await blobs.get(str.__str__(Key("a")))


@case(Feature.ORDERED)
async def a_scan_ends_before_until(trial: Trial) -> None:
    blobs = await _blobs(trial, "a", "b", "b2", "c", "d")
    same([key async for key in blobs.keys(until="c")], ["a", "b", "b2"], "until a key")
    same([key async for key in blobs.keys(until="bz", after="a")], ["b", "b2"], "until no key")
    same([key async for key in blobs.keys(until="c", reverse=True)], ["b2", "b", "a"], "backwards")
    same([key async for key in blobs.keys("b", until="b2")], ["b"], "within a prefix")
    same([key async for key in blobs.keys(until="c", limit=2)], ["a", "b"], "with a limit")


@case(Feature.ATOMIC)
async def a_batch_is_stored_if_all_its_conditions_hold(trial: Trial) -> None:
    blobs = await _blobs(trial, "a", "b")
    entry = await blobs.entry("a")
    revision = entry.revision if entry else 0
    wrong: list[tuple[Batch, dict[str, int]]] = [
        ([Set("a", b"x", expect=0), Set("c", b"x")], {}),
        ([Set("c", b"x"), Delete("a", expect=revision + 1)], {}),
        ([Set("c", b"x")], {"a": 0}),
        ([Set("c", b"x")], {"absent": revision}),
    ]
    for writes, checks in wrong:
        with raises(RevisionConflict, f"{writes} with {checks}"):
            await blobs.apply(writes, checks=checks)
    same(await _keys(blobs), ["a", "b"], "the keys after what failed")
    batch: Batch = [Set("a", b"2", expect=revision), Delete("b"), Delete("absent"), Set("c", b"3")]
    revisions = await blobs.apply(batch, checks={"d": 0})
    same([number > revision for number in revisions], [True, True, False, True], "the revisions")
    same(await blobs.list(), {"a": b"2", "c": b"3"}, "what was stored")
    with raises(ValueError, "two writes of one key"):
        await blobs.apply([Set("a", b"4"), Delete("a")])
