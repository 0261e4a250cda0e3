"""XAES-256-GCM (C2SP): AES-256-GCM with nonces of 24 bytes, which may be chosen at random."""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

NONCE_BYTES = 24
OVERHEAD_BYTES = NONCE_BYTES + 16
_BLOCK = 16


class Xaes:
    """Seals and opens under one key of 32 bytes.

    >>> box = Xaes(secrets.token_bytes(32))
    >>> box.open(box.seal(b"text", b"what it belongs to"), b"what it belongs to")
    b'text'
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(AES(key), ECB())  # noqa: S305  # single blocks, as C2SP derives keys
        first = int.from_bytes(self._encrypt(bytes(_BLOCK)))
        self._mask = ((first << 1) ^ (0x87 if first >> 127 else 0)) & (1 << 128) - 1

    def seal(self, data: bytes, bound_to: bytes, nonce: bytes | None = None) -> bytes:
        """The nonce, then `data` encrypted. `bound_to` must be the same when it is opened."""
        nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        return nonce + self._gcm(nonce).encrypt(nonce[12:], data, bound_to)

    def open(self, sealed: bytes, bound_to: bytes) -> bytes:
        """What was sealed. `cryptography.exceptions.InvalidTag` if it was changed."""
        nonce = sealed[:NONCE_BYTES]
        return self._gcm(nonce).decrypt(nonce[12:], sealed[NONCE_BYTES:], bound_to)

    def _gcm(self, nonce: bytes) -> AESGCM:
        blocks = (bytes((0, number, 0x58, 0)) + nonce[:12] for number in (1, 2))
        masked = (int.from_bytes(block) ^ self._mask for block in blocks)
        return AESGCM(self._encrypt(b"".join(block.to_bytes(_BLOCK) for block in masked)))

    def _encrypt(self, blocks: bytes) -> bytes:
        return self._cipher.encryptor().update(blocks)
