"""What the typed store adds: models, their versions, and clear errors."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, computed_field

from strongroom.errors import (
    InvalidKey,
    KeyExists,
    KeyMissing,
    RecordInvalid,
    RevisionConflict,
    StoreClosed,
)
from strongroom.storage import KeyValueStore, MemoryProvider, Record, Write
from strongroom.storage.encoding import FORMAT, Encoding


class Note(BaseModel):
    text: str
    stars: int | None = None


class Pinned(Note):
    where: str = "top"


@pytest.fixture
def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
async def notes(provider: MemoryProvider) -> KeyValueStore[Note]:
    return await provider.get_kv_store(Note, "notes")


async def test_a_record_is_a_format_a_version_and_json(
    provider: MemoryProvider, notes: KeyValueStore[Note]
) -> None:
    await notes.set("a", Note(text="Hello"))
    [record] = await (await provider.open("notes")).read(("a",))
    assert record is not None
    assert record.value == bytes((FORMAT, 0, 0)) + b'{"text":"Hello","stars":null}'


async def test_each_get_gives_a_fresh_object(notes: KeyValueStore[Note]) -> None:
    await notes.set("a", Note(text="Hello"))
    note = await notes.get("a")
    assert note is not None
    note.text = "changed"
    assert await notes.get("a") == Note(text="Hello")


async def test_aliases_computed_fields_and_forbidden_extras_come_back(
    provider: MemoryProvider,
) -> None:
    class Odd(BaseModel, extra="forbid"):
        name: str = Field(alias="n", serialization_alias="N")
        when: datetime

        @computed_field
        def length(self) -> int:
            return len(self.name)

    store = await provider.get_kv_store(Odd, "odd")
    odd = Odd(n="x", when=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC))
    await store.set("a", odd)
    assert await store.get("a") == odd


@pytest.mark.parametrize("value", [Pinned(text="x"), {"text": "x"}, None])
async def test_only_the_model_itself_can_be_set(notes: KeyValueStore[Note], value: Any) -> None:
    with pytest.raises(TypeError, match="keeps Note"):
        await notes.set("a", value)
    assert await notes.get("a") is None


async def test_a_value_that_its_type_forbids_is_refused_before_it_is_stored(
    notes: KeyValueStore[Note],
) -> None:
    note = Note(text="x")
    note.stars = cast("int", "many")
    with pytest.raises(RecordInvalid, match="'a' of 'notes' cannot be stored"):
        await notes.set("a", note)


class Order(BaseModel):
    """Fields that Pydantic stores without a word, though it would not read them again."""

    price: float = 0
    code: str = Field(default="", max_length=5)


class Hidden(BaseModel):
    secret: str = Field(exclude=True)


class Wide(BaseModel):
    number: int


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Order(price=float("inf")), "price"),
        (Order(price=float("nan")), "price"),
        (Order.model_construct(code="too long"), "code"),
        (Hidden(secret="x"), "secret"),
        (Wide(number=10**5000), None),
    ],
)
async def test_what_could_not_be_read_again_is_refused_before_it_is_stored(
    provider: MemoryProvider, value: BaseModel, field: str | None
) -> None:
    store = await provider.get_kv_store(type(value), "orders")
    with pytest.raises(
        RecordInvalid, match=f"not be read again: {field or 'the record'}"
    ) as raised:
        await store.set("a", value)
    assert raised.value.field == field
    assert await store.count() == 0


class Plain(BaseModel):
    text: str
    number: int | None = None
    flag: bool = False


class Rich(BaseModel):
    text: str
    price: float = 0
    when: datetime | None = None
    kind: Literal["a", "b"] = "a"
    tags: list[str] = []
    inner: Plain | None = None


TEXTS = st.sampled_from(["", "x", "12", "ü😀", "\ud800", "a"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=5)
)
ANYTHING = st.one_of(
    SCALARS,
    st.datetimes(timezones=st.just(UTC)),
    st.lists(SCALARS, max_size=3),
    st.builds(Plain.model_construct, text=SCALARS, number=SCALARS),
)


@given(st.sampled_from([Plain, Rich]), st.data())
def test_what_set_takes_get_gives_back(model: type[BaseModel], data: st.DataObject) -> None:
    fields = data.draw(
        st.fixed_dictionaries({}, optional=dict.fromkeys(model.model_fields, ANYTHING))
    )
    value = model.model_construct(**fields)
    encoding = Encoding(model, "notes")
    try:
        stored = encoding.encode("key", value)
    except RecordInvalid:
        return
    assert encoding.decode(Record("key", stored, 1, 0, 0)) == value


async def test_a_record_that_no_longer_fits_names_namespace_key_and_field(
    provider: MemoryProvider, notes: KeyValueStore[Note]
) -> None:
    class Rated(BaseModel):
        text: str
        stars: int

    await notes.set("a", Note(text="secret"))
    with pytest.raises(RecordInvalid, match="'a' of 'notes' does not fit Rated: stars") as raised:
        await KeyValueStore(await provider.open("notes"), Rated, "notes").list()
    assert (raised.value.namespace, raised.value.key) == ("notes", "a")
    assert raised.value.field == "stars"
    assert "secret" not in str(raised.value)


async def test_older_records_are_upgraded_step_by_step(
    provider: MemoryProvider, notes: KeyValueStore[Note]
) -> None:
    class Text(BaseModel):
        body: str
        words: int

    def rename(data: dict[str, Any]) -> dict[str, Any]:
        return {"body": data["text"]}

    def count(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "words": len(data["body"].split())}

    await notes.set("a", Note(text="Hello World"))
    records = await provider.open("notes")
    texts = KeyValueStore(records, Text, "notes", upgrade=[rename, count])
    assert await texts.get("a") == Text(body="Hello World", words=2)
    await texts.set("b", Text(body="x", words=1))
    with pytest.raises(RecordInvalid, match="written by version 2 of Note, but this program has v"):
        await notes.get("b")


async def test_an_upgrade_that_raises_names_its_step(
    provider: MemoryProvider, notes: KeyValueStore[Note]
) -> None:
    def drop(data: dict[str, Any]) -> dict[str, Any]:
        return {"text": data["nothing"]}

    await notes.set("a", Note(text="x"))
    with pytest.raises(RecordInvalid, match="from version 0 of Note to 1: KeyError"):
        await (await provider.get_kv_store(Note, "notes", upgrade=[drop])).get("a")


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x02\0\0{}", b'{"text":"x"}', b"\x01\0\0{"])
async def test_bytes_that_are_no_record_are_invalid(
    provider: MemoryProvider, notes: KeyValueStore[Note], value: bytes
) -> None:
    await (await provider.open("notes")).apply([Write("a", value)])
    with pytest.raises(RecordInvalid):
        await notes.get("a")


async def test_create_wants_an_absent_key_and_update_a_present_one(
    notes: KeyValueStore[Note],
) -> None:
    with pytest.raises(KeyMissing, match="'notes' has no record 'a'"):
        await notes.update("a", Note(text="x"))
    revision = await notes.create("a", Note(text="x"))
    with pytest.raises(KeyExists) as raised:
        await notes.create("a", Note(text="y"))
    assert raised.value.found == revision


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), timedelta.max])
async def test_a_ttl_that_makes_no_sense_is_refused(notes: KeyValueStore[Note], ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl is"):
        await notes.set("a", Note(text="x"), ttl=ttl)


async def test_modify_leaves_the_default_as_it_was_given(notes: KeyValueStore[Note]) -> None:
    default = Note(text="x", stars=0)

    def star(note: Note) -> Note:
        note.stars = (note.stars or 0) + 1
        return note

    assert await notes.modify("a", star, default=default) == Note(text="x", stars=1)
    assert default.stars == 0


async def test_a_transaction_that_clashes_stores_nothing(notes: KeyValueStore[Note]) -> None:
    await notes.set("a", Note(text="1"))
    with pytest.raises(RevisionConflict):
        async with notes.transaction() as transaction:
            await transaction.get("a")
            await transaction.set("b", Note(text="2"))
            await notes.set("a", Note(text="between"))
    assert await notes.list() == {"a": Note(text="between")}
    with pytest.raises(StoreClosed, match="transaction has ended"):
        await transaction.set("b", Note(text="late"))


@pytest.mark.parametrize("call", ["set", "create", "update"])
async def test_no_write_takes_a_key_that_cannot_be(notes: KeyValueStore[Note], call: str) -> None:
    write: Callable[..., Any] = getattr(notes, call)
    for key in ("", "a\0b", "\ud800", "x" * 1025):
        with pytest.raises(InvalidKey):
            await write(key, Note(text="x"))
