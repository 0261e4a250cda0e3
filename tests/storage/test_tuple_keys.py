"""Keys that are tuples: their order, their ranges, and what cannot be a part of one."""

from __future__ import annotations

from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import InvalidKey
from strongroom.storage import Key, check_key
from strongroom.storage.keys import MAX_PART, Digest, Part

PARTS = st.tuples() | st.lists(
    st.binary(max_size=6)
    | st.integers(-(2**80), 2**80)
    | st.integers(-20, 20)
    | st.text(alphabet="\0\1\2\3ab\U0001f600\ue000", max_size=4)
    | st.text(max_size=8),
    max_size=4,
).map(tuple)


def rank(parts: tuple[Part, ...]) -> list[tuple[int, Part]]:
    return [((bytes, int, str).index(type(part)), part) for part in parts]


@given(PARTS)
def test_a_key_gives_back_its_parts(parts: tuple[Part, ...]) -> None:
    assert Key(*parts).parts == parts
    assert Key.of(check_key(Key(*parts))).parts == parts


@given(PARTS, PARTS)
def test_keys_sort_as_their_tuples(one: tuple[Part, ...], other: tuple[Part, ...]) -> None:
    in_utf8 = Key(*one).encode() < Key(*other).encode()
    assert in_utf8 == (rank(one) < rank(other))


@given(PARTS, PARTS)
def test_a_key_begins_another_where_its_tuple_does(
    one: tuple[Part, ...], more: tuple[Part, ...]
) -> None:
    assert Key(*one, *more).startswith(Key(*one))
    assert Key(*one, *more).first(len(one)) == Key(*one)
    assert Key(*more).startswith(Key(*one)) == (more[: len(one)] == one)


@pytest.mark.parametrize("long", ["x" * 1000, "é" * 200, b"\xff" * 1000, "\0" * 500])
def test_a_long_part_is_told_apart_by_its_digest(long: str | bytes) -> None:
    other = long[:-1] + (b"y" if isinstance(long, bytes) else "y")  # type: ignore[operator]
    assert len({Key(long), Key(other), Key(long[:-1]), Key(long[:10])}) == 4
    assert len(check_key(Key(long, long, long)).encode()) < 1024
    [part] = Key(long).parts
    assert isinstance(part, Digest)
    assert Key(long, "inside").startswith(Key(long))
    assert Key(long[:10]) < Key(long)


def test_a_part_of_the_longest_length_is_kept_whole() -> None:
    assert Key("x" * MAX_PART, b"x" * (MAX_PART // 2)).parts == (
        "x" * MAX_PART,
        b"x" * (MAX_PART // 2),
    )


class Color(StrEnum):
    RED = "r"


def test_a_string_of_another_class_is_its_plain_string() -> None:
    assert Key(Color.RED) == Key("r")
    assert type(Key(Color.RED).parts[0]) is str


@pytest.mark.parametrize("part", [None, 1.5, True, ("a",), ["a"], "\ud800", 2**400, -(2**400)])
def test_what_cannot_be_a_part_is_refused(part: object) -> None:
    with pytest.raises(InvalidKey):
        Key("a", part)  # type: ignore[arg-type]


def test_a_tuple_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidKey, match="at most 1024"):
        check_key(Key(*["x" * MAX_PART] * 9))


def test_a_key_shows_its_parts() -> None:
    assert repr(Key("thread", 7, b"\0")) == "Key('thread', 7, b'\\x00')"
