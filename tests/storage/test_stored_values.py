"""What was stored comes back, or was refused; and no error quotes it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretBytes,
    SecretStr,
    field_validator,
)

from strongroom import MemoryProvider
from strongroom.errors import InvalidKey, InvalidNamespace, NotStarted, RecordInvalid, StorageError
from strongroom.storage import KeyValueStore
from strongroom.storage.records import Record

SECRET = "hunter2hunter2"


class MixedKey(str, Enum):  # noqa: UP042  # its str() is another string
    A = "a"


class PlainKey(StrEnum):
    A = "a"


class Note(BaseModel):
    text: str


class Base(BaseModel):
    n: int = 0


class Sub(Base):
    more: int = 0


class Anything(BaseModel):
    v: Any = None


class Nested(BaseModel):
    base: Base = Base()


class Excluding(BaseModel):
    hidden: int = Field(default=1, exclude=True)


class Numbers(BaseModel):
    v: dict[Any, int]


class Base64(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")
    v: bytes


class Private(BaseModel):
    _seen: int = PrivateAttr(default=0)


class Doubling(BaseModel):
    v: int

    @field_validator("v")
    @classmethod
    def double(cls, v: int) -> int:
        return v * 2


class Login(BaseModel):
    name: str
    password: SecretStr
    tokens: list[SecretBytes] = []
    more: dict[str, SecretStr] = {}


class Many(BaseModel):
    model_config = ConfigDict(extra="allow")
    f: float = 0.0
    d: Decimal = Decimal("1.50")
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    local: datetime = datetime(2026, 1, 1)  # noqa: DTZ001  # naive on purpose
    s: set[int] = {1, 2}
    t: tuple[int, str] = (1, "x")
    p: Path = Path("x")


class Picky(BaseModel):
    v: str

    @field_validator("v")
    @classmethod
    def refuse(cls, v: str) -> str:
        if v != "good":
            raise ValueError(f"{v} is bad")
        return v


async def opened(model: type[BaseModel], *upgrade: Callable[[Any], Any]) -> KeyValueStore[Any]:
    return await MemoryProvider().get_kv_store(model, "things", upgrade=upgrade)


@pytest.mark.parametrize("key", [MixedKey.A, PlainKey.A])
async def test_a_string_of_a_subclass_is_the_plain_string_everywhere(key: str) -> None:
    provider = MemoryProvider()
    notes = await provider.get_kv_store(Note, key)
    await notes.set(key, Note(text="x"))
    await notes.set_many({key: Note(text="y")})
    async with notes.transaction() as transaction:
        await transaction.set(key, Note(text="z"))
    assert await notes.list(key) == {"a": Note(text="z")}
    assert await notes.get("a") == (await notes.get_many([key]))["a"] == Note(text="z")
    assert [type(found) async for found in notes.keys(key)] == [str]
    assert [type(name) for name in await provider.namespaces()] == [str]
    assert await notes.count(key) == 1
    assert [found async for found in notes.keys(after=key)] == []
    assert await notes.delete_many([key]) == 1
    await provider.drop(key)
    assert await provider.namespaces() == []


async def test_a_key_or_namespace_that_is_not_a_string_is_refused_with_its_type() -> None:
    notes: Any = await opened(Note)
    for call in (notes.get(1), notes.list(2), notes.count(None), notes.get_many([b"x"])):
        with pytest.raises(InvalidKey, match=r"of type (int|NoneType|bytes)"):
            await call
    provider: Any = MemoryProvider()
    with pytest.raises(InvalidNamespace, match="of type int"):
        await provider.get_kv_store(Note, 1)
    with pytest.raises(InvalidNamespace, match="of type int"):
        await provider.drop(1)


async def test_two_models_of_one_namespace_are_refused_until_it_is_dropped() -> None:
    provider = MemoryProvider()
    notes = await provider.get_kv_store(Note, "things")
    await notes.set("k", Note(text="x"))
    await provider.get_kv_store(Note, "things")
    with pytest.raises(StorageError, match="is open as a store of Note, and Base is another model"):
        await provider.get_kv_store(Base, "things")
    assert await notes.get("k") == Note(text="x")
    await provider.drop("things")
    await provider.get_kv_store(Base, "things")


@pytest.mark.parametrize("text", ["\0", "\ud800", "\x1b[31m\u202e"])
async def test_an_error_shows_little_of_a_long_key_or_name_and_nothing_unprintable(
    text: str,
) -> None:
    notes = await opened(Note)
    long = text + "x" * 100_000
    with pytest.raises(InvalidKey) as key:
        await notes.get(long)
    with pytest.raises(InvalidNamespace) as name:
        await MemoryProvider().get_kv_store(Note, long)
    for caught in (key, name):
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Nested(base=Sub(n=1, more=2)), "base"),
        (Excluding(hidden=2), "hidden"),
        (Numbers(v={1: 1, "1": 2}), "v"),
        (Base64(v=b"abc"), "v"),
        (Doubling(v=1), "v"),
        (Anything(v=Base(n=1)), "v"),
        (Anything(v=(1, 2)), "v"),
        (Anything(v={1: 2}), "v"),
        (Anything(v=object()), None),
        (Anything(v=datetime(2026, 1, 1, tzinfo=UTC)), "v"),
    ],
)
async def test_a_value_that_would_not_come_back_is_refused(
    value: BaseModel, field: str | None
) -> None:
    things = await opened(type(value))
    with pytest.raises(RecordInvalid, match=r"'k' of 'things' cannot be stored") as caught:
        await things.set("k", value)
    assert (caught.value.namespace, caught.value.key) == ("things", "k")
    assert caught.value.field == field
    assert await things.count() == 0


async def test_a_private_attribute_that_would_be_lost_is_refused() -> None:
    value = Private()
    things = await opened(Private)
    await things.set("k", value)
    value._seen = 1
    with pytest.raises(RecordInvalid, match="_seen"):
        await things.set("k", value)


@pytest.mark.parametrize("f", [0.0, -0.0, 1e300])
async def test_values_of_many_types_come_back(f: float) -> None:
    things = await opened(Many)
    value = Many.model_validate({"f": f, "extra": [1, "two"]})
    await things.set("k", value)
    found = await things.get("k")
    assert found == value
    assert str(found.f) == str(f)


async def test_secrets_come_back_and_a_plain_profile_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = Login(
        name="me",
        password=SecretStr(SECRET),
        tokens=[SecretBytes(b"1"), SecretBytes(b"2")],
        more={"x": SecretStr("y")},
    )
    logins = await MemoryProvider().get_kv_store(Login, "logins")
    with caplog.at_level(logging.WARNING):
        await logins.set("a", value)
        await logins.set("b", value)
    assert await logins.get("a") == value
    assert [SECRET in text or "'logins'" in text for text in caplog.messages] == [True]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        Picky.model_construct(v=SECRET),
        Base.model_construct(n=SECRET),
        Note.model_construct(text=SECRET + "\ud800"),
        Anything(v={SECRET: object()}),
        Anything(v=(SECRET,)),
    ],
)
async def test_no_error_quotes_the_value(value: BaseModel) -> None:
    things = await opened(type(value))
    with pytest.raises(RecordInvalid) as caught:
        await things.set("k", value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


async def coroutine(_: Any) -> Any: ...


def circle(data: dict[str, Any]) -> Any:
    data["data"] = data
    return data


def raising(_: Any) -> Any:
    raise KeyError(SECRET)


@pytest.mark.parametrize(
    "upgrade",
    [lambda _: object(), coroutine, circle, raising, lambda _: {"text": "\ud800"}, lambda _: None],
)
async def test_a_bad_upgrade_function_is_an_invalid_record(upgrade: Callable[[Any], Any]) -> None:
    provider = MemoryProvider()
    await (await provider.get_kv_store(Note, "things")).set("k", Note(text=SECRET))
    newer = await provider.get_kv_store(Note, "things", upgrade=[upgrade])
    with pytest.raises(RecordInvalid) as caught:
        await newer.get("k")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_a_record_that_is_not_json_is_invalid_when_it_is_upgraded() -> None:
    newer = await opened(Note, lambda data: data)
    with pytest.raises(RecordInvalid):
        newer.check(Record("k", b"\x01\x00\x00{", 1, 0, 0))


async def test_slips_are_errors() -> None:
    notes = await opened(Note)
    with pytest.raises(ValueError, match="limit is -1"):
        _ = [entry async for entry in notes.scan(limit=-1)]
    with pytest.raises(TypeError, match="ttl is a number of seconds"):
        await notes.set("k", Note(text="x"), ttl=True)
    with pytest.raises(NotStarted, match="async with"):
        await notes.transaction().set("k", Note(text="x"))
