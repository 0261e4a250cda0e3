"""How the keys of records are hidden: each becomes a token, always the same, which gives it back.

The key is padded with zeros to 16, 32, 48 or 64 bytes, or to a multiple of 64, encrypted with
AES-SIV (RFC 5297), and written as base64url. Tokens show which keys are the same, and how long they
are at most; they show neither order nor common beginnings.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom.errors import StoreDamaged

_LABEL = b"strongroom/name/v1"
_SHORT = 64  # bytes up to which keys are padded to a multiple of 16


class Names:
    """Turns the keys of one namespace into tokens and back."""

    def __init__(self, secret: bytes, space_id: bytes, namespace: str) -> None:
        self._namespace = namespace
        self._bound_to = [_LABEL, space_id, namespace.encode()]
        info = _LABEL + b"\0" + space_id + namespace.encode()
        self._siv = AESSIV(HKDFExpand(SHA256(), 64, info).derive(secret))

    def token(self, key: str) -> str:
        """What stands for `key`."""
        name = key.encode()
        step = 16 if len(name) <= _SHORT else _SHORT
        padded = name.ljust(-len(name) // step * -step, b"\0")
        return base64.urlsafe_b64encode(self._siv.encrypt(padded, self._bound_to)).decode()

    def key(self, token: str) -> str:
        """The key for which `token` stands.

        Raises:
            StoreDamaged: It was made without the name secret, or for another namespace.
        """
        try:
            padded = self._siv.decrypt(base64.urlsafe_b64decode(token), self._bound_to)
        except (InvalidTag, binascii.Error, ValueError):
            raise StoreDamaged(
                f"The server has a name in {self._namespace!r} that was not made for it.",
                remedy="find out who can write to the server",
                namespace=self._namespace,
            ) from None
        return padded.rstrip(b"\0").decode()
