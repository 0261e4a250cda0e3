"""How the key of a file follows from a root, and the header that says which root it is.

The first 16 bytes of an encrypted file are readable:

    0-1    magic "SR"
    2      format: 1 root from a random key, 2 root from a passphrase by Argon2id
    3-10   file id, random
    11-14  key check
    15     CRC-8 of bytes 0 to 14

docs/file-format.md describes the whole file.
"""

from __future__ import annotations

import secrets

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

MAGIC = b"SR"
RANDOM_KEY = 1
PASSPHRASE = 2


class Header(msgspec.Struct, frozen=True):
    """What the first 16 bytes of an encrypted file say."""

    format: int
    file_id: bytes
    check: bytes

    def to_bytes(self) -> bytes:
        """The 16 bytes, which SQLite3 Multiple Ciphers takes as the salt of a raw key."""
        text = salt(self.format, self.file_id) + self.check
        return text + bytes([crc8(text)])


class FileKey(msgspec.Struct, frozen=True):
    """What opens one encrypted file: its page key, bound to its header."""

    header: Header
    page_key: bytes

    def __repr__(self) -> str:
        return f"FileKey(file_id={self.header.file_id.hex()})"

    @property
    def pragma(self) -> str:
        """The statement that gives the key to SQLite3 Multiple Ciphers."""
        return f"PRAGMA key = 'raw:{self.page_key.hex()}{self.header.to_bytes().hex()}'"


def salt(format: int, file_id: bytes) -> bytes:  # noqa: A002  # the header's own term
    """Bytes 0 to 10 of the header, which salt the root of a keystore."""
    return MAGIC + bytes([format]) + file_id


def new_file_id() -> bytes:
    """A file's random identity, 8 bytes."""
    return secrets.token_bytes(8)


def file_key(root: bytes, namespace: str, *, format: int, file_id: bytes) -> FileKey:  # noqa: A002
    """Derive page key and key check of a file from its 32-byte root (HKDF-Expand, RFC 5869)."""
    check = _expand(root, b"strongroom/check/v1", namespace)[:4]
    page_key = _expand(root, b"strongroom/page/v1", namespace)
    return FileKey(Header(format, file_id, check), page_key)


def changes_key(root: bytes, changes_id: bytes) -> bytes:
    """The key of the changes of a keystore, 32 bytes (HKDF-Expand)."""
    return _expand(root, b"strongroom/changes/v1", changes_id.hex())


def _expand(root: bytes, label: bytes, namespace: str) -> bytes:
    return HKDFExpand(SHA256(), 32, label + b"\0" + namespace.encode()).derive(root)


def crc8(data: bytes) -> int:
    """CRC-8/SMBUS: polynomial 0x07, initial value 0."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ 0x07 if crc & 0x80 else crc << 1
    return crc & 0xFF
