"""Searches files for stored text that they must not contain."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 1024 * 1024
PIECE_BYTES = 16
SHORTEST = 8


class Leak(NamedTuple):
    """Where text was found. `offset` is None if it is in the name of the file."""

    path: Path
    offset: int | None
    needle: str
    form: str


def leak_scan(directory: Path, needles: Iterable[str]) -> list[Leak]:
    """Search all files below `directory`, names and contents, for the texts `needles`.

    >>> leak_scan(Path("data"), ["Hello, World!"])
    []

    Each text is searched for as UTF-8, UTF-16, hexadecimal and Base64, and in pieces of 16 bytes:
    a database splits values at the ends of its pages, which leaves one piece of a text of 32 bytes
    whole. A leak is reported once for each piece, form and MiB of a file.

    Raises:
        ValueError: A needle is so short that it would be found by chance.
    """
    patterns = {pattern: (needle, form) for needle in needles for form, pattern in _forms(needle)}
    leaks: list[Leak] = []
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory)).encode(errors="surrogateescape")
        leaks += [Leak(path, None, *patterns[p]) for p in patterns if p in name]
        if path.is_file():
            leaks += _scan_file(path, patterns)
    return leaks


def _scan_file(path: Path, patterns: Mapping[bytes, tuple[str, str]]) -> Iterator[Leak]:
    overlap = max(map(len, patterns), default=1) - 1
    start, tail = 0, b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                window = tail + chunk
                for pattern, found in patterns.items():
                    # A match within the tail was already found in the chunk before.
                    at = window.find(pattern, max(0, len(tail) - len(pattern) + 1))
                    if at >= 0:
                        yield Leak(path, start - len(tail) + at, *found)
                start += len(chunk)
                tail = window[-overlap:] if overlap else b""
    except FileNotFoundError:
        return  # a store in use removes its temporary files


def _forms(needle: str) -> Iterator[tuple[str, bytes]]:
    if len(needle) < SHORTEST:
        raise ValueError(f"{needle!r} is too short. Try: a text of {SHORTEST} characters or more")
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        data = needle.encode(encoding)
        for piece in _pieces(data):
            yield encoding, piece
    for piece in _pieces(needle.encode()):
        yield "hex", piece.hex().encode()
        yield "hex", piece.hex().upper().encode()
        yield from _base64(piece)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Pieces of `data`, so that the end of a page splits only one of them."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
        if len(data) - start < 2 * PIECE_BYTES:
            yield data[-PIECE_BYTES:]
            return


def _base64(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What `data` becomes within a longer Base64 text, at each of the three offsets."""
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data)
        # The first and last characters also depend on the bytes before and after.
        first = (0, 2, 3)[shift]
        last = len(encoded) - (0, 3, 2)[(shift + len(data)) % 3]
        inner = encoded[first:last]
        yield "base64", inner
        yield "base64", inner.translate(bytes.maketrans(b"+/", b"-_"))
