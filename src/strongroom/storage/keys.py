"""Keys that are tuples: they sort as the tuples do, and each prefix of a tuple is a range.

A tuple is written as one string, so that every store can keep it:

    U+FDD0      marks a tuple: a character that Unicode reserves for the inside of programs
    then for each part
      b ...     bytes, in hex, up to U+0001
      i L ...   an integer that is not negative, in hex, after L, a character for its length
      h L ...   a negative integer: the same, each digit and the length subtracted from the highest
      s ...     a string, up to U+0001; in it U+0000, U+0001 and U+0002 follow a U+0002

Strings are compared by their code points, which is the order of their UTF-8 bytes. So parts sort as
their values do, and bytes before integers before strings. Of a part that is longer than MAX_PART
characters only the first HEAD are there, and then U+0002 U+0001 and the part's SHA-256: such parts
sort by what they begin with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Self

from strongroom.errors import InvalidKey

MARK = "\ufdd0"
MAX_PART = 128
HEAD = 64

Part = str | int | bytes

_END = "\x01"
_ESCAPE = "\x02"
_CUT = _ESCAPE + _END
_ESCAPED = str.maketrans({code: f"{_ESCAPE}{chr(code + 2)}" for code in range(3)})
_LONGEST = 79  # hex digits of an integer
_DIGITS = "0123456789abcdef"
_OPPOSITE = str.maketrans(_DIGITS, _DIGITS[::-1])


class Digest(str):
    """What a `Key` keeps of a part that is too long: its beginning and its SHA-256, as text."""

    __slots__ = ()


class Key(str):
    """A tuple of strings, integers and bytes, as a key.

    >>> key = Key("thread", 7, b"step")
    >>> key.parts
    ('thread', 7, b'step')
    >>> sorted([Key("a", 10), Key("a", 9), Key("a")]) == [Key("a"), Key("a", 9), Key("a", 10)]
    True

    All keys that begin with some parts: `store.scan(Key("thread", 7))`. Keys that are plain strings
    are never among them.

    Raises:
        InvalidKey: A part is of another type, or is a string that is not Unicode, or an integer of
            more than 316 bits.
    """

    __slots__ = ()

    def __new__(cls, *parts: Part) -> Self:
        return super().__new__(cls, MARK + "".join(map(_written, parts)))

    @classmethod
    def of(cls, text: str) -> Self:
        """The key that `text` is, as a store returns it."""
        return super().__new__(cls, text)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tuple. A part that was too long for a key is a `Digest`."""
        return tuple(part for part, _ in _read(self))

    def first(self, number: int) -> Key:
        """The key of the first `number` parts, which all keys that begin with them begin with."""
        ends = [len(MARK), *(end for _, end in _read(self))]
        return Key.of(str.__str__(self)[: ends[number]])

    @property
    def end(self) -> Key:
        """What comes after all keys that begin with this one, for `after=` and `until=`."""
        return Key.of(prefix_end(self) or self)

    def __repr__(self) -> str:
        return f"Key({', '.join(map(repr, self.parts))})"


def prefix_end(prefix: str) -> str | None:
    """The first string after all keys that begin with `prefix`; None if there is none.

    >>> prefix_end("user:")
    'user;'
    """
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    # Code points sort as their UTF-8 bytes do; the surrogates between U+D7FF and U+E000 have none.
    following = 0xE000 if stem[-1] == "\ud7ff" else ord(stem[-1]) + 1
    return stem[:-1] + chr(following)


def is_tuple(text: str) -> bool:
    """Whether a stored key is a tuple."""
    return text[:1] == MARK


def _written(part: Part) -> str:
    if isinstance(part, str):
        return f"s{_text(str.__str__(part))}{_END}"
    if isinstance(part, bool) or not isinstance(part, int | bytes):
        raise InvalidKey(
            f"A part of a key is a string, an integer or bytes; this one is a "
            f"{type(part).__name__}."
        )
    if isinstance(part, bytes):
        return f"b{_cut(part.hex(), part)}{_END}"
    digits = f"{abs(part):x}"
    if len(digits) > _LONGEST:
        raise InvalidKey("An integer in a key has at most 316 bits; this one has more.")
    if part < 0:
        return f"h{chr(0x7E - len(digits))}{digits.translate(_OPPOSITE)}"
    return f"i{chr(0x2F + len(digits))}{digits}"


def _text(part: str) -> str:
    try:
        data = part.encode()
    except UnicodeEncodeError:
        raise InvalidKey("A part of a key has a lone surrogate, which is not UTF-8.") from None
    return _cut(part, data, escape=True)


def _cut(text: str, data: bytes, *, escape: bool = False) -> str:
    is_long = len(text) > MAX_PART or len(data) > MAX_PART * 2
    shown = text[:HEAD] if is_long else text
    if escape:
        shown = shown.translate(_ESCAPED)
    return f"{shown}{_CUT}{hashlib.sha256(data).hexdigest()}" if is_long else shown


def _read(text: str) -> Iterator[tuple[Part, int]]:
    """Each part of a key, and where it ends."""
    place = len(MARK)
    while place < len(text):
        kind = text[place]
        if kind in "hi":
            length = 0x7E - ord(text[place + 1]) if kind == "h" else ord(text[place + 1]) - 0x2F
            digits = text[place + 2 : place + 2 + length]
            place += 2 + length
            number = int(digits, 16) if kind == "i" else -int(digits.translate(_OPPOSITE), 16)
            yield number, place
            continue
        part, place = _read_text(text, place + 1)
        is_bytes = kind == "b" and not isinstance(part, Digest)
        yield bytes.fromhex(part) if is_bytes else part, place


def _read_text(text: str, place: int) -> tuple[str, int]:
    found: list[str] = []
    while text[place] != _END:
        if text[place] != _ESCAPE:
            found.append(text[place])
            place += 1
        elif text[place + 1] == _END:
            end = text.index(_END, place + 2)
            return Digest(f"{''.join(found)}…{text[place + 2 : end]}"), end + 1
        else:
            found.append(chr(ord(text[place + 1]) - 2))
            place += 2
    return "".join(found), place + 1
