"""The recovery sheet: a master key on paper, with a checksum on each line.

    strongroom recovery sheet, version 1
    1  4f9c 22d1 a07b 3e58   9b1c
    ...
    4  ...
    key 6f1a...            (the fingerprint of a random key)

A line has 8 bytes of the key, and the first two bytes of SHA-256 over its number and these bytes:
a mistake is found in its line. A sheet has no data key: those are in the keystore.
"""

from __future__ import annotations

import hashlib
import re

from strongroom.errors import MasterKeyInvalid
from strongroom.keys.derive import PASSPHRASE
from strongroom.keys.master import MasterKey
from strongroom.keys.text import encode_key

_TITLE = "strongroom recovery sheet, version 1"
_LINE_BYTES = 8
_AGAIN = "type that line again, as it is on paper"
_LINE = re.compile(r"\s*(\d+)\s+((?:[0-9a-fA-F]{2,4}\s+)+)([0-9a-fA-F]{4})\s*")


def write_sheet(key: MasterKey) -> str:
    """The recovery sheet of a master key, as text to print."""
    kind = "passphrase" if key.format == PASSPHRASE else "random key"
    secret = key.secret
    lines = [f"{_TITLE}: {kind}, {len(secret)} bytes"]
    for number, start in enumerate(range(0, len(secret), _LINE_BYTES), start=1):
        part = secret[start : start + _LINE_BYTES]
        digits = " ".join(part[at : at + 2].hex() for at in range(0, len(part), 2))
        lines.append(f"{number:3}  {digits:19}   {_checksum(number, part)}")
    lines.append(f"fingerprint {key.fingerprint}")
    return "\n".join(lines) + "\n"


def read_sheet(text: str) -> str:
    """The master key on a sheet, in the form of FAME_STORAGE_MASTER_KEY.

    Raises:
        MasterKeyInvalid: A line is missing or mistyped; the message says which.
    """
    title = re.search(rf"{_TITLE}: (random key|passphrase), (\d+) bytes", text)
    if title is None:
        raise MasterKeyInvalid(
            "This is not a sheet, or its title is missing.",
            remedy=f"first the line {_TITLE!r}, with its kind and its size",
        )
    kind, size = title[1], int(title[2])
    secret, number = b"", 0
    for line in text[title.end() :].splitlines():
        if (match := _LINE.fullmatch(line)) is None:
            continue
        number += 1
        part = bytes.fromhex("".join(match[2].split()))
        if int(match[1]) != number:
            raise MasterKeyInvalid(f"Line {number} of the sheet is missing.", remedy=_AGAIN)
        if match[3].lower() != _checksum(number, part):
            raise MasterKeyInvalid(
                f"Line {number} of the sheet does not match its checksum.", remedy=_AGAIN
            )
        secret += part
    if len(secret) != size:
        raise MasterKeyInvalid(
            f"The sheet has {len(secret)} bytes of {size}: line {number + 1} is missing or cannot "
            "be read.",
            remedy=_AGAIN,
        )
    try:
        return MasterKey(
            secret.decode() if kind == "passphrase" else encode_key(secret), existing=True
        ).text
    except UnicodeDecodeError:
        raise MasterKeyInvalid("The sheet is not of a passphrase.", remedy=_AGAIN) from None


def _checksum(number: int, part: bytes) -> str:
    return hashlib.sha256(bytes([number % 256]) + part).digest()[:2].hex()
