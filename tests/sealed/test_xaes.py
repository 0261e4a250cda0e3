"""XAES-256-GCM gives what its specification (C2SP) lists."""

import hashlib

import pytest
from cryptography.exceptions import InvalidTag

from strongroom.keys.xaes import Xaes

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"


@pytest.mark.parametrize(
    ("key", "bound_to", "sealed"),
    [
        (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            3,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ],
)
def test_the_vectors_of_c2sp(key: int, bound_to: bytes, sealed: str) -> None:
    box = Xaes(bytes([key]) * 32)

    found = box.seal(b"XAES-256-GCM", bound_to, NONCE)

    assert found == NONCE + bytes.fromhex(sealed)
    assert box.open(found, bound_to) == b"XAES-256-GCM"


def test_ten_thousand_random_vectors_of_c2sp_together() -> None:
    stream, digest = hashlib.shake_128(), hashlib.shake_128()
    source, place = stream.digest(4_000_000), 0

    def take(size: int) -> bytes:
        nonlocal place
        place += size
        return source[place - size : place]

    for _ in range(10_000):
        key, nonce = take(32), take(24)
        text = take(take(1)[0])
        bound_to = take(take(1)[0])
        digest.update(Xaes(key).seal(text, bound_to, nonce)[24:])

    assert digest.hexdigest(32) == (
        "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
    )


def test_what_was_changed_or_belongs_elsewhere_does_not_open() -> None:
    box = Xaes(bytes(32))
    sealed = box.seal(b"text", b"here")

    for bad, place in ((sealed[:-1] + bytes([sealed[-1] ^ 1]), b"here"), (sealed, b"there")):
        with pytest.raises(InvalidTag):
            box.open(bad, place)
