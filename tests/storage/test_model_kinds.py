"""Models of every kind: what is stored comes back as it was, or storing it is refused."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
)

from strongroom import MemoryProvider
from strongroom.errors import RecordInvalid
from support.notes import KEY, provider_of

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    ONE = 1


class Size(StrEnum):
    BIG = "big"


class Level(IntEnum):
    LOW = 1


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


class Pet(BaseModel):
    """A union that a field tells apart."""

    pet: Annotated[Cat | Dog, Discriminator("kind")]


class House(BaseModel):
    """A tagged union below a list, and one of plain types."""

    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]
    number: int | str | None = None


class Left(BaseModel):
    n: int = 0


class Right(BaseModel):
    n: int = 0


class Twins(BaseModel):
    """A union in which the JSON of one member is that of the other."""

    side: Left | Right


class Timed(BaseModel):
    at: date | datetime | str


class Box(BaseModel, Generic[T]):
    content: T


class Numbers(RootModel[list[int]]):
    pass


class Tree(RootModel[dict[str, "Tree"]]):
    pass


class Square(BaseModel):
    side: int

    @computed_field
    def area(self) -> int:
        return self.side**2


class Rounded(BaseModel):
    """Its serialiser loses what is stored."""

    price: float

    @field_serializer("price")
    def rounded(self, price: float) -> float:
        return round(price)


class Hexadecimal(BaseModel):
    n: str

    @field_serializer("n")
    def upper(self, n: str) -> str:
        return n.upper()


class Wrapped(BaseModel):
    """Its serialiser writes another shape than it reads."""

    n: int

    @model_serializer
    def wrapped(self) -> dict[str, Any]:
        return {"data": {"n": self.n}}


@dataclass
class Point:
    x: int
    y: float = 0.0


class Pair(NamedTuple):
    left: int
    right: str


class Many(BaseModel):
    points: list[Point] = []
    pair: Pair = Pair(1, "a")
    queue: deque[int] = deque()
    ids: frozenset[UUID] = frozenset()
    byte: bytes = b""
    colours: dict[Colour, Level] = {}
    size: Size = Size.BIG
    lasts: timedelta = timedelta()
    cost: Decimal = Decimal(0)
    path: Path = Path()
    maybe: list[int | None] | None = None


class Login(BaseModel):
    """Secrets below everything that can hold them."""

    password: SecretStr
    more: dict[str, list[SecretStr | None]] = {}
    box: Box[SecretStr] | None = None
    pair: tuple[int, SecretStr] | None = None


class Token(RootModel[SecretStr]):
    pass


COME_BACK: list[BaseModel] = [
    Pet(pet=Cat(lives=3)),
    Pet(pet=Dog()),
    House(pets=[Cat(), Dog(lives=2)], number="12"),
    House(pets=[], number=12),
    Twins(side=Left(n=1)),
    Timed(at="not a date"),
    Box[int](content=1),
    Box[Box[list[str]]](content=Box(content=["a", ""])),
    Numbers([3, 1]),
    Tree({"a": Tree({"b": Tree({})})}),
    Square(side=3),
    Rounded(price=2.0),
    Hexadecimal(n="FF"),
    Many(
        points=[Point(1, 0.5), Point(2)],
        pair=Pair(2, "b"),
        queue=deque([2, 1]),
        ids=frozenset({UUID(int=1), UUID(int=2)}),
        byte=b"plain",
        colours={Colour.RED: Level.LOW},
        lasts=timedelta(days=2, microseconds=1),
        cost=Decimal("1.10"),
        path=Path("a/b"),
        maybe=[None, 1],
    ),
]

REFUSED: list[tuple[BaseModel, str | None]] = [
    (Twins(side=Right(n=1)), "side"),
    (Timed(at="2026-01-01"), "at"),
    (Box[Any](content=Cat()), "content"),
    (Box[Left](content=Left()).model_copy(update={"content": Right()}), "content"),
    (Rounded(price=2.5), "price"),
    (Hexadecimal(n="ff"), "n"),
    (Wrapped(n=1), "n"),
    (Many(size=Size.BIG).model_copy(update={"size": "big"}), "size"),
    (Many().model_copy(update={"colours": OrderedDict({Colour.RED: Level.LOW})}), "colours"),
    (Many().model_copy(update={"pair": (1, "a")}), "pair"),
]

SECRETS: list[BaseModel] = [
    Login(
        password=SecretStr("hunter2"),
        more={"x": [SecretStr("one"), None, SecretStr("")]},
        box=Box[SecretStr](content=SecretStr("two")),
        pair=(1, SecretStr("three")),
    ),
    Box[SecretStr](content=SecretStr("**********")),
    Token(SecretStr("hunter2")),
    Numbers([1]),
]


@pytest.mark.parametrize("value", COME_BACK, ids=repr)
async def test_a_model_of_each_kind_comes_back(value: BaseModel) -> None:
    things = await MemoryProvider().get_kv_store(type(value), "things")
    await things.set("k", value)
    found = await things.get("k")
    assert repr(found) == repr(value)
    assert found == value


@pytest.mark.parametrize(("value", "field"), REFUSED, ids=repr)
async def test_a_value_that_would_come_back_as_another_is_refused(
    value: BaseModel, field: str | None
) -> None:
    things = await MemoryProvider().get_kv_store(type(value), "things")
    with pytest.raises(RecordInvalid) as caught:
        await things.set("k", value)
    assert caught.value.field == field
    assert await things.count() == 0


async def test_secrets_in_encrypted_files_come_back_as_secrets(tmp_path: Path) -> None:
    async with provider_of(tmp_path, KEY) as provider:
        for number, value in enumerate(SECRETS):
            things = await provider.get_kv_store(type(value), f"things-{number}")
            await things.set("k", value)
    async with provider_of(tmp_path, KEY) as provider:
        for number, value in enumerate(SECRETS):
            things = await provider.get_kv_store(type(value), f"things-{number}")
            assert await things.get("k") == value
            [record] = await (await provider.open(f"things-{number}")).read(["k"])
            assert record is not None
            assert (b"****" in record.value) is (number == 1)


async def test_a_time_of_a_zone_comes_back_as_the_same_moment() -> None:
    value = Timed(at=datetime(2026, 1, 1, 12, tzinfo=UTC))
    things = await MemoryProvider().get_kv_store(Timed, "things")
    await things.set("k", value)
    assert await things.get("k") == value
