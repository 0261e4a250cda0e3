"""Tests of the conformance suite: stores that are wrong in one way must fail one case."""

import asyncio
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from strongroom.errors import StoreClosed
from strongroom.settings import StorageSettings
from strongroom.storage import (
    Batch,
    Changes,
    Clock,
    Feature,
    MemoryProvider,
    Page,
    Record,
    Write,
)
from strongroom.storage.memory import MemoryStore
from strongroom.testing import CASES, SLOW_CASES, Report, conformance
from strongroom.testing.trial import Make


def provider_of(store_class: type[MemoryStore]) -> type[MemoryProvider]:
    class Provider(MemoryProvider):
        async def open(self, namespace: str) -> MemoryStore:
            store = await super().open(namespace)
            store.__class__ = store_class
            return store

    return Provider


async def try_one(make: Make, name: str) -> Report:
    cases = [case for case in CASES + SLOW_CASES if case.name == name]
    assert cases, f"there is no case {name!r}"
    return await conformance(make, cases=cases, deadline=0.5)


BROKEN: list[tuple[str, type[MemoryStore]]] = []


def fails(name: str) -> Any:
    def register(store_class: type[MemoryStore]) -> type[MemoryStore]:
        BROKEN.append((name, store_class))
        return store_class

    return register


# --- reading --------------------------------------------------------------------------------------


@fails("a record comes back as it was written")
class GivesTextForBytes(MemoryStore):
    async def read(self, keys) -> Any:
        records = await super().read(keys)
        return [r and Record(r.key, r.value.strip(b"\0"), *_rest(r)) for r in records]


@fails("values of any size come back")
class CutsValues(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        cut = [Write(w.key, w.value and w.value[:65536], w.expires, w.expect) for w in writes]
        return await super().apply(cut, checks=checks)


@fails("reading returns records in the order of the keys given")
class AnswersInItsOwnOrder(MemoryStore):
    async def read(self, keys) -> Any:
        return await super().read(sorted(set(keys)))


@fails("keys differ by their code points")
class NormalisesKeys(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        return await super().apply([_renamed(w, unicodedata.normalize) for w in writes])


@fails("a prefix is taken literally")
class TakesPrefixesForPatterns(MemoryStore):
    async def count(self, prefix="") -> Any:
        return await super().count(prefix.rstrip("%_*"))


@fails("scans go in the order of the utf8 bytes")
class SortsAsUtf16(MemoryStore):
    async def scan(self, prefix="", *, reverse=False, **options: Any) -> Any:
        page = await super().scan(prefix, reverse=reverse, **options)
        page.records.sort(key=lambda r: r.key.encode("utf-16-be"), reverse=reverse)
        return page


@fails("a scan starts after a key that need not exist")
class WantsTheCursorToExist(MemoryStore):
    async def scan(self, prefix="", *, after=None, **options: Any) -> Any:
        exists = after is None or after in self._records
        return await super().scan(prefix, after=after if exists else None, **options)


@fails("pages end at the limit and say whether more follows")
class SaysMoreWhenThePageIsFull(MemoryStore):
    async def scan(self, prefix="", *, limit=256, **options: Any) -> Any:
        page = await super().scan(prefix, limit=limit, **options)
        return Page(page.records, more=len(page.records) == limit)


@fails("pages end at the maximum of bytes but have one record")
class IgnoresMaxBytes(MemoryStore):
    async def scan(self, prefix="", *, max_bytes=0, **options: Any) -> Any:
        return await super().scan(prefix, max_bytes=None, **options)


@fails("a scan can leave out the values")
class AlwaysReadsValues(MemoryStore):
    async def scan(self, prefix="", *, values=True, **options: Any) -> Any:
        return await super().scan(prefix, **options)


@fails("a long scan sees every key that exists throughout")
class PagesByPosition(MemoryStore):
    position = 0

    async def scan(self, prefix="", *, after=None, limit=256, **options: Any) -> Any:
        start = 0 if after is None else self.position
        records = list(self._records.values())[start:]
        self.position = start + 256
        return Page(records[:256], more=len(records) > 256)


# --- writing --------------------------------------------------------------------------------------


@fails("writes at the same time are all stored")
class DropsAWrite(MemoryStore):
    def _store(self, write: Write, now: int) -> int:
        if self._revision == 41:
            self._revision += 1
            return self._revision
        return super()._store(write, now)


@fails("a record comes back as it was written")
class ReturnsTheOldRevision(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        return [max(0, revision - 1) for revision in await super().apply(writes, checks=checks)]


@fails("every write takes a higher revision")
class BeginsAgainWhenEmpty(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        revisions = await super().apply(writes, checks=checks)
        if all(write.value is None for write in writes):
            self._revision = 0
            self._log.clear()
            self._tombstones.clear()
        return revisions


@fails("deleting removes and deleting nothing gives 0")
class CountsDeletionsOfNothing(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        revisions = await super().apply(writes, checks=checks)
        return [revision or self._revision for revision in revisions]


@fails("times come from the clock")
class ForgetsWhenARecordCameToBe(MemoryStore):
    def _store(self, write: Write, now: int) -> int:
        self._records.pop(write.key, None)
        return super()._store(write, now)


@fails("a condition that does not hold stores nothing")
class IgnoresConditions(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        blind = [Write(w.key, w.value, w.expires) for w in writes]
        return await super().apply(blind, checks=checks)


@fails("a batch is stored completely or not at all")
class StoresOneByOne(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        return [(await super(StoresOneByOne, self).apply([write]))[0] for write in writes]


@fails("checks guard records that are not written")
class IgnoresChecks(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        return await super().apply(writes)


@fails("one of many writers with the same condition wins")
class ChecksFirstAndWritesLater(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        for write in writes:
            if write.expect is not None:
                await super().apply([], checks={write.key: write.expect})
        await asyncio.sleep(0)
        return await super().apply([Write(w.key, w.value, w.expires) for w in writes])


@fails("a snapshot never shows half of a batch")
class ShowsHalfOfABatch(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        self._expire()
        revisions = []
        for write in writes:
            revisions.append(self._store(write, self._clock()))
            await asyncio.sleep(0)
        return revisions


@fails("a cancelled write is stored completely or not at all")
class StopsInTheMiddleWhenCancelled(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        self._expire()
        revisions = []
        for write in writes:
            await asyncio.sleep(0)
            revisions.append(self._store(write, self._clock()))
        return revisions


@fails("a cancelled write is stored completely or not at all")
class KeepsItsLockWhenCancelled(MemoryStore):
    locked = False

    async def apply(self, writes, *, checks=None) -> Any:
        while self.locked:
            await asyncio.sleep(0)
        self.locked = True
        revisions = await super().apply(writes, checks=checks)
        self.locked = False
        return revisions


# --- expiry ---------------------------------------------------------------------------------------


@fails("a record exists until the microsecond of its expiry")
class ExpiresLate(MemoryStore):
    def _expire(self) -> int:
        clock, self._clock = self._clock, lambda: clock() - 1
        try:
            return super()._expire() + 1
        finally:
            self._clock = clock


@fails("a record exists until the microsecond of its expiry")
class CountsWhatHasExpired(MemoryStore):
    async def count(self, prefix="") -> int:
        end = prefix + "\U0010ffff"
        return len(list(self._records.irange(prefix, end)))


@fails("an expired record is absent for conditions and deletions")
class SeesExpiredRecordsWhenItWrites(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        clock, self._clock = self._clock, lambda: 0
        try:
            self._expire()
            return [self._store(write, clock()) for write in writes]
        finally:
            self._clock = clock


@fails("a later write decides the expiry again")
class KeepsTheFirstExpiry(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        first = {key: record.expires for key, record in self._records.items()}
        kept = [Write(w.key, w.value, first.get(w.key) or w.expires, w.expect) for w in writes]
        return await super().apply(kept, checks=checks)


@fails("a touch moves the expiry and nothing else")
class StoresAgainWhenItTouches(MemoryStore):
    async def touch(self, key, expires) -> bool:
        [record] = await self.read([key])
        return bool(record and await self.apply([Write(key, record.value, expires)]))


@fails("a touch moves the expiry and nothing else")
class ForgetsTheNewExpiry(MemoryStore):
    async def touch(self, key, expires) -> bool:
        return key in self._records


@fails("a touch brings nothing back")
class TouchesWhatHasExpired(MemoryStore):
    async def touch(self, key, expires) -> bool:
        clock, self._clock = self._clock, lambda: 0
        try:
            return await super().touch(key, expires)
        finally:
            self._clock = clock


@fails("a write after a touch continues the record")
class BeginsANewRecordAfterATouch(MemoryStore):
    async def touch(self, key, expires) -> bool:
        is_there = await super().touch(key, expires)
        if record := self._records.get(key):
            self._records[key] = Record(key, record.value, record.revision, 0, 0, expires)
        return is_there


@fails("a touch is no change and its expiry is one")
class TellsWatchersOfATouch(MemoryStore):
    async def touch(self, key, expires) -> bool:
        [record] = await self.read([key])
        return bool(record and await self.apply([Write(key, record.value, expires)]))


@fails("expired records do not count in pages")
class FiltersAfterTheLimit(MemoryStore):
    def _expire(self) -> int:
        return self._clock()

    async def scan(self, prefix="", **options: Any) -> Any:
        page = await super().scan(prefix, **options)
        alive = [r for r in page.records if r.expires is None or r.expires > self._clock()]
        return Page(alive, more=page.more)


# --- watching -------------------------------------------------------------------------------------


@fails("deletions are changes")
class LosesTombstones(MemoryStore):
    def _delete(self, key: str, now: int) -> int:
        revision = super()._delete(key, now)
        if key in self._tombstones:
            del self._tombstones[key], self._log[revision]
        return revision


@fails("pages of changes miss and repeat nothing")
class JumpsToTheEnd(MemoryStore):
    async def changes(self, after, **options: Any) -> Any:
        changes = await super().changes(after, **options)
        return Changes(changes.changes, self._revision)


@fails("a watcher that starts again misses and repeats nothing")
class RepeatsTheLastChange(MemoryStore):
    async def changes(self, after, **options: Any) -> Any:
        changes = await super().changes(after, **options)
        return Changes(changes.changes, max(0, changes.cursor - 1))


@fails("a waiting watcher wakes for its prefix")
class NeverWakes(MemoryStore):
    def _wake(self) -> None:
        pass


@fails("a waiting watcher wakes for its prefix")
class WakesForOthersPrefixes(MemoryStore):
    async def changes(self, after, *, prefix="", **options: Any) -> Any:
        return await super().changes(after, **options)


@fails("expiry is a change")
class ExpiresInSilence(MemoryStore):
    def _delete(self, key: str, now: int) -> int:
        self._remove(key)
        return 0


@fails("a waiting watcher sees a record expire")
class SleepsThroughExpiry(MemoryStore):
    async def _wait(self) -> None:
        await self._changed.wait()


@fails("a cursor is good or expired but never wrong")
class ForgetsDeletionsWithoutSaying(MemoryStore):
    def _forget(self, now: int) -> None:
        super()._forget(now)
        self._forgotten = 0


@fails("a cursor from the future has expired")
class WaitsForTheFuture(MemoryStore):
    async def changes(self, after, **options: Any) -> Any:
        return await super().changes(after and min(after, self._revision), **options)


# --- values ---------------------------------------------------------------------------------------


@fails("a model comes back with every value as it was")
class KeepsParsedJson(MemoryStore):
    """As a column of JSON does, that sorts keys and has one type of numbers."""

    async def apply(self, writes, *, checks=None) -> Any:
        return await super().apply([_parsed(write) for write in writes], checks=checks)


@fails("a secret comes back as a secret")
class MasksPasswords(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        masked = [
            Write(w.key, w.value and w.value.replace(b"hunter2", b"*******"), w.expires, w.expect)
            for w in writes
        ]
        return await super().apply(masked, checks=checks)


# --- closing --------------------------------------------------------------------------------------


@fails("a closed store says so")
class WorksAfterClose(MemoryStore):
    async def close(self) -> None:
        pass


@fails("closing ends calls that wait for changes")
class LeavesWatchersWaiting(MemoryStore):
    async def close(self) -> None:
        self.closed = True


# --- tuples, bytes and batches --------------------------------------------------------------------


@fails("bytes come back as they were given")
class TrimsLines(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        cut = [Write(w.key, w.value and w.value.rstrip(b"\n"), w.expires, w.expect) for w in writes]
        return await super().apply(cut, checks=checks)


@fails("tuple keys sort as their tuples")
class SortsWithoutControlCharacters(MemoryStore):
    async def scan(self, prefix="", *, reverse=False, **options: Any) -> Any:
        page = await super().scan(prefix, reverse=reverse, **options)
        page.records.sort(key=lambda r: r.key.replace("\1", ""), reverse=reverse)
        return page


@fails("each prefix of a tuple is a range")
class TrimsPrefixes(MemoryStore):
    async def scan(self, prefix="", **options: Any) -> Any:
        return await super().scan(prefix.rstrip("\1"), **options)


@fails("a scan ends before until")
class ScansForwardsOnly(MemoryStore):
    async def scan(self, prefix="", *, reverse=False, **options: Any) -> Any:
        return await super().scan(prefix, **options)


@fails("a batch is stored if all its conditions hold")
class ChecksOnlyTheFirstWrite(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        rest = [Write(w.key, w.value, w.expires) for w in writes[1:]]
        return await super().apply([*writes[:1], *rest], checks=checks)


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
async def test_a_wrong_store_fails_exactly_its_case(name, broken) -> None:
    report = await try_one(provider_of(broken), name)
    assert [outcome.case.name for outcome in report.failed] == [name]


def _rest(record: Record) -> tuple[int, int, int, int | None]:
    return (record.revision, record.created, record.updated, record.expires)


def _parsed(write: Write) -> Write:
    if write.value is None:
        return write
    text = json.dumps(json.loads(write.value[3:], parse_float=lambda text: int(float(text))))
    return Write(write.key, write.value[:3] + text.encode(), write.expires, write.expect)


def _renamed(write: Write, normalize: Any) -> Write:
    return Write(normalize("NFC", write.key), write.value, write.expires, write.expect)


# --- what a restart must find ---------------------------------------------------------------------


class Disk(MemoryProvider):
    """Durable as far as the suite can tell: what was stored outlives the provider."""

    disks: ClassVar[dict[Path, dict[str, MemoryStore]]] = {}

    def __init__(self, settings: StorageSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        assert settings.directory is not None
        self._stores = self.disks.setdefault(settings.directory, {})
        for store in self._stores.values():
            store.closed = False

    async def open(self, namespace: str) -> MemoryStore:
        store = await super().open(namespace)
        store.features = MemoryStore.features | {Feature.DURABLE}
        return store


class DropsByText(MemoryProvider):
    async def drop(self, namespace: str) -> None:
        await super().drop(f"{namespace}")


async def test_a_provider_that_formats_names_fails_exactly_its_case() -> None:
    name = "a string of a subclass is the string that it equals"
    report = await try_one(DropsByText, name)
    assert [outcome.case.name for outcome in report.failed] == [name]


class StoresOneAfterTheOther(MemoryProvider):
    async def apply_together(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            await super().apply_together([batch])


async def test_a_provider_that_stores_one_namespace_after_the_other_fails_exactly_its_case() -> (
    None
):
    name = "writes in several namespaces are stored together or not at all"
    report = await try_one(StoresOneAfterTheOther, name)
    assert [outcome.case.name for outcome in report.failed] == [name]


class LosesEverything(Disk):
    def __init__(self, settings: StorageSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self._stores.clear()


class LosesTheLastWrite(Disk):
    async def close(self) -> None:
        for store in self._stores.values():
            if store._records and not self._closed:
                store._remove(store._records.keys()[-1])
        await super().close()


class TakesRevisionsFromTheRecords(Disk):
    async def close(self) -> None:
        await super().close()
        for store in self._stores.values():
            store._revision = max((r.revision for r in store._records.values()), default=0)
            store._tombstones.clear()
            store._log.clear()


class ForgetsTombstonesAtClose(Disk):
    async def close(self) -> None:
        await super().close()
        for store in self._stores.values():
            for revision, _ in store._tombstones.values():
                del store._log[revision]
            store._tombstones.clear()


class BringsDroppedNamespacesBack(Disk):
    _dropped: dict[str, MemoryStore]

    async def drop(self, namespace: str) -> None:
        dropped = self._stores.get(namespace)
        await super().drop(namespace)
        self._dropped = {namespace: dropped} if dropped else self._dropped

    async def close(self) -> None:
        await super().close()
        self._stores.update(getattr(self, "_dropped", {}))


class AcknowledgesAtOnce(MemoryStore):
    async def apply(self, writes, *, checks=None) -> Any:
        return [self._store(write, self._expire()) for write in writes]


class AcknowledgesBeforeItWrites(Disk):
    async def open(self, namespace: str) -> MemoryStore:
        store = await super().open(namespace)
        store.__class__ = AcknowledgesAtOnce
        return store

    async def close(self) -> None:
        await super().close()
        for store in self._stores.values():
            for key in [key for key in store._records if key.startswith("k4")]:
                store._remove(key)


class ForgetsExpiryAtClose(Disk):
    async def close(self) -> None:
        await super().close()
        for store in self._stores.values():
            store._expiring.clear()


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("a restart finds everything", LosesEverything),
        ("a restart finds everything", LosesTheLastWrite),
        ("revisions continue after a restart", TakesRevisionsFromTheRecords),
        ("a cursor outlives a restart", ForgetsTombstonesAtClose),
        ("a dropped namespace stays gone after a restart", BringsDroppedNamespacesBack),
        ("writes under way at close are stored or refused", AcknowledgesBeforeItWrites),
        ("records expire while the store is closed", ForgetsExpiryAtClose),
    ],
)
async def test_a_store_that_forgets_fails_exactly_its_case(name, broken) -> None:
    assert (await try_one(Disk, name)).ok
    report = await try_one(broken, name)
    assert [outcome.case.name for outcome in report.failed] == [name]


async def test_the_report_shows_features_and_cases() -> None:
    report = await try_one(provider_of(IgnoresChecks), "checks guard records that are not written")
    assert not report.ok
    assert "ATOMIC   declared\nORDERED  declared\n" in str(report)
    assert "FAILED   checks guard records that are not written: AssertionError: " in str(report)
    report = await try_one(MemoryProvider, "a restart finds everything")
    assert "skipped  a restart finds everything (needs DURABLE)" in str(report)
    assert report.ok


async def test_a_provider_that_cannot_start_fails_every_case() -> None:
    class Unready(MemoryProvider):
        async def open(self, namespace: str) -> MemoryStore:
            raise StoreClosed("not today")

    with pytest.raises(StoreClosed):
        await conformance(Unready, cases=CASES[:1])
