"""What arrives equals what was sent, or the call fails and names the field."""

import dataclasses
import decimal
import enum
import math
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from msgspec import Raw, Struct
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PrivateAttr,
    RootModel,
    SecretBytes,
    SecretStr,
    computed_field,
)
from typing_extensions import TypedDict

from strongroom import Agent, BaseAgent, operation
from strongroom.errors import InvalidArguments, OperationFailed, ProtocolError
from strongroom.messaging.values import Codec, Unfit
from strongroom.testing import serving
from support.fabrics import Probe

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1


class Word(enum.StrEnum):
    YES = "yes"


class Text(str):
    __slots__ = ()


class Note(BaseModel):
    text: str
    stars: float | None = None


class Named(BaseModel):
    type: str
    metadata: Any


class Packed(Struct):
    inside: Any


class Longer(Note):
    more: str = ""


class Hidden(BaseModel):
    shown: int
    hidden: int = Field(default=0, exclude=True)


class Renamed(BaseModel):
    both: int = Field(alias="wireName")
    read: int = Field(validation_alias=AliasChoices("a", "b"))


class WrittenOtherwise(BaseModel):
    model_config = ConfigDict(extra="forbid")
    parsed: Json[list[int]]
    _cache: object = PrivateAttr(default_factory=object)

    @computed_field
    def size(self) -> int:
        return len(self.parsed)


class Secretive(BaseModel):
    password: SecretStr
    names: list[SecretBytes] = []


class Box(BaseModel, Generic[T]):
    inside: T


@dataclasses.dataclass
class Point:
    x: float
    data: bytes = b""


@dataclasses.dataclass(slots=True)
class Slotted:
    inside: list[Any]


class Row(TypedDict):
    key: str
    when: datetime


SAME: list[tuple[Any, Any]] = [
    (bytes, b"\x00\xff>>>???"),
    (list[bytes], [b"", b"hello"]),
    (bytes | None, b"\xff"),
    (dict[int, str], {1: "one", -2: "two"}),
    (dict[date, Colour], {date(2026, 1, 2): Colour.RED}),
    (set[int], {3, 1}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (Sequence[int], (1, 2)),
    (decimal.Decimal, decimal.Decimal("0.10000000000000000000001")),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    (datetime, datetime(2026, 1, 2, tzinfo=UTC)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (uuid.UUID, uuid.UUID(int=7)),
    (Path, Path("a/b")),
    (int, 2**70),
    (float, 1e300),
    (float | None, None),
    (Colour, Colour.RED),
    (Word, Word.YES),
    (str, Text("mine")),
    (complex, 1 + 2j),
    (Literal["a", 1], 1),
    (Note, Note(text="a", stars=0.5)),
    (Note | Longer, Longer(text="a", more="b")),
    (Hidden, Hidden(shown=1)),
    (Renamed, Renamed.model_validate({"wireName": 1, "b": 2})),
    (WrittenOtherwise, WrittenOtherwise.model_validate({"parsed": "[1,2]"})),
    (SecretStr, SecretStr("open sesame")),
    (Secretive, Secretive(password=SecretStr("x"), names=[SecretBytes(b"y")])),
    (SecretBytes, SecretBytes(b"\xff\x00")),
    (Box[Note], Box[Note](inside=Note(text="a"))),
    (RootModel[list[int]], RootModel[list[int]]([1])),
    (Point, Point(1.5, b"text")),
    (Slotted, Slotted([1])),
    (Row, {"key": "a", "when": datetime(2026, 1, 2, tzinfo=UTC)}),
    (Any, {"a": [1, 2.5, None, True, "x"]}),
    (dict[str, Any], {"a": {"b": [1]}}),
    (object, "anything"),
    (Named, Named(type="text", metadata={"a": [1]})),
    (object, [[[[[[[[[[]]]]]]]]]]),
    (Annotated[int, {"not": ["hashable"]}], 5),
]


@pytest.mark.parametrize(("annotation", "value"), SAME, ids=str)
def test_a_value_that_its_annotation_allows_arrives_as_it_is(annotation: Any, value: Any) -> None:
    codec = Codec(annotation)
    arrived = codec.read(Raw(codec.write(value)))
    if isinstance(value, WrittenOtherwise):
        assert arrived.parsed == value.parsed
    elif isinstance(value, tuple) and annotation is not tuple[int, str]:
        assert tuple(arrived) == value
    else:
        assert arrived == value
        assert type(arrived) is type(value) or isinstance(value, Text)


CHANGED: list[tuple[Any, Any, list[Any]]] = [
    (float, math.nan, []),
    (float | None, math.inf, []),
    (list[float | None], [1.0, -math.inf], [1]),
    (Note, Note(text="a", stars=math.nan), ["stars"]),
    (list[Note], [Note(text="a"), Longer(text="b", more="c")], [1]),
    (Note, Note.model_construct(text=5), ["text"]),
    (Hidden, Hidden(shown=1, hidden=2), ["hidden"]),
    (Point, Point(1.0, b"\xff"), ["data"]),
    (Any, {"a": [b"bytes"]}, ["a", 0]),
    (Any, {1: "a"}, ["1"]),
    (Any, [SecretStr("x")], [0]),
    (Any, math.nan, []),
    (Any, Note(text="a", stars=math.nan), ["stars"]),
    (Any, {"m": [Note(text="a", stars=math.nan)]}, ["m", 0, "stars"]),
    (Any, {"a": ["\ud800"]}, ["a", 0]),
    (Any, {"a": [object()]}, ["a", 0]),
    (Slotted, Slotted([b"x"]), ["inside", 0]),
    (Any, Slotted([b"x"]), ["inside", 0]),
    (Any, {"deep": Point(math.inf)}, ["deep", "x"]),
    (Any, Packed(b"x"), ["inside"]),
    (Any, [Packed([math.nan])], [0, "inside", 0]),
    (list[Any], [Packed(b"x")], [0, "inside"]),
    (Any, deque([1.0, math.nan]), [1]),
    (Any, {"a": deque([b"x"])}, ["a", 0]),
    (Any, iter([1.0, math.nan]), [1]),
    (Any, {"a": iter([1.0])}, ["a"]),
    (Any, {"a": {True: 1}}, ["a", "True"]),
    (Any, {(1, 2): 1}, ["(1, 2)"]),
    (Any, {None: 1}, ["None"]),
    (dict[str, Any], {"a": b"bytes"}, ["a"]),
    (dict[tuple[int, int], str], {(1, 2): "a"}, ["1,2", "[key]"]),
    (str, SecretStr("x"), []),
    (str, b"bytes\xff", []),
    (str, "\ud800", []),
    (str, datetime(2026, 1, 2, tzinfo=UTC), []),
    (str | datetime, datetime(2026, 1, 2, tzinfo=UTC), []),
    (int, "five", []),
    (int, None, []),
    (None, 5, []),
]


@pytest.mark.parametrize(("annotation", "value", "place"), CHANGED)
def test_a_value_that_would_not_arrive_as_it_is_names_its_place(
    annotation: Any, value: Any, place: list[Any]
) -> None:
    with pytest.raises(Unfit) as unfit:
        Codec(annotation).write(value)
    assert unfit.value.problems[0]["loc"] == place


def test_a_refusal_does_not_show_what_is_secret() -> None:
    with pytest.raises(Unfit) as unfit:
        Codec(list[int]).write([SecretStr("sesame"), "sesame"])
    assert "sesame" not in f"{unfit.value} {unfit.value.problems}"


def test_a_value_that_contains_itself_or_is_very_deep_is_refused() -> None:
    deep: list[Any] = []
    deep.append(deep)
    for annotation in (Any, list[Any], object):
        with pytest.raises(Unfit):
            Codec(annotation).write(deep)


class Values(BaseAgent):
    """Gives back what it gets."""

    @operation
    async def data(self, value: bytes) -> bytes:
        return value

    @operation
    async def number(self, /, *more: float, value: float = 0.0, **named: float) -> float:
        return value + sum(more) + sum(named.values())

    @operation
    async def secret(self, value: SecretStr) -> str:
        return value.get_secret_value()

    @operation
    async def anything(self, value: Any) -> Any:
        return value

    @operation
    async def wrong(self, value: Any) -> int:
        return "five" if value is None else value  # type: ignore[return-value]

    @operation
    async def nothing(self) -> Any:
        return {"a": [math.nan]}

    @operation(streaming=True)
    async def items(self) -> AsyncIterator[float]:
        yield 1.0
        yield math.nan

    @operation
    async def limited(self, count: int = Field(default=10, ge=1)) -> int:
        return count

    @operation
    async def noted(
        self,
        count: Annotated[int, Field(default_factory=lambda: 3, le=5)],
        other: Annotated[int, Field(ge=1)] = 2,
    ) -> int:
        return count * other

    @operation
    async def needed(self, count: int = Field(ge=1)) -> int:
        return count


async def test_arguments_results_and_items_keep_one_rule() -> None:
    async with serving(Values()) as values:
        assert await values.data(b"\x00\xff") == b"\x00\xff"
        assert await values.secret(SecretStr("sesame")) == "sesame"
        assert await values.anything((1, datetime(2026, 1, 2, tzinfo=UTC))) == [
            1,
            "2026-01-02T00:00:00Z",
        ]
        with pytest.raises(InvalidArguments, match="value: JSON has no nan"):
            await values.number(value=math.nan)
        with pytest.raises(InvalidArguments, match="more: JSON has no inf"):
            await values.number(1, math.inf)
        with pytest.raises(InvalidArguments, match="named: JSON has no inf"):
            await values.number(other=math.inf)
        assert await values.number(1, 2, value=3, other=4) == 10
        with pytest.raises(OperationFailed, match=r"nothing\(\).*a\.0: JSON has no nan"):
            await values.nothing()
        for wrong in (None, 5.5):
            with pytest.raises(OperationFailed, match=r"wrong\(\) returned a \w+ that its anno"):
                await values.wrong(wrong)
        read = []
        with pytest.raises(OperationFailed, match=r"items\(\) yielded a float .*JSON has no nan"):
            async for item in values.items():
                read.append(item)
        assert read == [1.0]


async def test_a_caller_without_the_class_sends_what_json_has() -> None:
    async with serving(Values()) as values:
        untyped = Agent.remote_by_address(address_of(values))
        assert await untyped.anything({"a": [1, None]}) == {"a": [1, None]}
        for value in (b"bytes", math.nan, SecretStr("x"), {1: 2}):
            with pytest.raises(InvalidArguments, match=r"anything\(\): value"):
                await untyped.anything(value=value)
        assert await untyped.limited() == 10


async def test_a_field_as_a_default_gives_its_default_and_its_constraint() -> None:
    async with serving(Values()) as values:
        assert await values.limited() == 10
        assert await values.limited(count=11) == 11
        assert await Agent.remote_by_address(address_of(values)).noted() == 6
        untyped = Agent.remote_by_address(address_of(values))
        for call in (untyped.limited(0), untyped.noted(6), untyped.noted(1, 0)):
            with pytest.raises(InvalidArguments, match=r"less than|greater than"):
                await call
        with pytest.raises(InvalidArguments, match="missing"):
            await values.needed()


def address_of(remote: Any) -> str:
    return repr(remote).split()[-1].rstrip(">")


async def test_a_result_that_the_callers_class_cannot_read_is_our_error() -> None:
    class Other(BaseAgent):
        @operation(name="echo")
        async def strict(self, value: Any) -> Note: ...  # type: ignore[empty-body]

    async with serving(Probe()) as probe:
        other = Other.remote(address_of(probe))
        with pytest.raises(ProtocolError, match=r"echo\(\).*text: Field required"):
            await other.strict({"stars": 1})
