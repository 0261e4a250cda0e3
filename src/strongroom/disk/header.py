"""The first 24 bytes of an encrypted file, and the keys that follow from them.

SQLite3 Multiple Ciphers leaves bytes 0 to 23 of a database readable and takes the first 16 as they
are given with a raw key. They tell which key opens the file before SQLite touches it:

    0-1    magic "SR"
    2      format: 1 root from a random key, 2 root from a passphrase by Argon2id
    3-10   file id, random
    11-14  key check
    15     CRC-8 of bytes 0 to 14
    16-23  SQLite's own: page size 4096, journal mode, 32 reserved bytes for nonce and tag, ...

docs/file-format.md describes the whole file.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom.errors import FormatUnsupported, StoreDamaged, StoreNotEncrypted

MAGIC = b"SR"
RANDOM_KEY = 1
PASSPHRASE = 2
PAGE_SIZE = 4096
RESERVED = 32
SALT_SIZE = 16
HEADER_SIZE = 24
PLAIN_MAGIC = b"SQLite format 3\0"

_SQLITE_BYTES = {  # bytes 16-23, by journal mode
    bytes([0x10, 0, mode, mode, RESERVED, 0x40, 0x20, 0x20]) for mode in (1, 2)
}


class Header(msgspec.Struct, frozen=True):
    """What the first 16 bytes of an encrypted file say."""

    format: int
    file_id: bytes
    check: bytes

    def to_bytes(self) -> bytes:
        """The 16 bytes that SQLite3 Multiple Ciphers takes as the raw key's salt."""
        text = MAGIC + bytes([self.format]) + self.file_id + self.check
        return text + bytes([_crc8(text)])


class FileKey(msgspec.Struct, frozen=True):
    """What opens one encrypted file: the root for its namespace, bound to the file's header."""

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


def read_header(path: Path) -> Header:
    """Read and check the header of an encrypted file, without SQLite.

    Raises:
        StoreNotEncrypted: The file is a plain SQLite database.
        FormatUnsupported: A newer Strongroom wrote it.
        StoreDamaged: The file is empty, shorter than one page, or the header was changed.
    """
    with path.open("rb") as file:
        first = file.read(PAGE_SIZE)
    if first.startswith(PLAIN_MAGIC):
        raise StoreNotEncrypted(
            f"{path} is a plain SQLite database, and an encrypted one was expected.",
            remedy="put the encrypted file back from a backup",
            path=path,
        )
    if len(first) < PAGE_SIZE:
        raise _damaged(path, f"it has {len(first)} bytes and at least {PAGE_SIZE} are needed")
    if first[:2] != MAGIC or first[15] != _crc8(first[:15]):
        raise _damaged(path, "its header (bytes 0 to 15) is not valid")
    if first[16:HEADER_SIZE] not in _SQLITE_BYTES:
        raise _damaged(path, "its page layout (bytes 16 to 23) is not valid")
    header = Header(first[2], first[3:11], first[11:15])
    if header.format not in (RANDOM_KEY, PASSPHRASE):
        raise FormatUnsupported(
            f"{path} has format {header.format}, which this version does not know.",
            remedy="a newer Strongroom",
            path=path,
        )
    return header


def check_plain(path: Path) -> None:
    """Raise StoreDamaged unless `path` begins as a plain SQLite database does."""
    with path.open("rb") as file:
        first = file.read(PAGE_SIZE)
    if len(first) < PAGE_SIZE:
        raise _damaged(path, f"it has {len(first)} bytes and at least {PAGE_SIZE} are needed")
    if not first.startswith(PLAIN_MAGIC):
        raise _damaged(path, "its header is not that of an SQLite database")


def same(one: bytes, other: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one, other)


def _damaged(path: Path, how: str) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is damaged: {how}.", remedy="put the file back from a backup", path=path
    )


def _expand(root: bytes, label: bytes, namespace: str) -> bytes:
    return HKDFExpand(SHA256(), 32, label + b"\0" + namespace.encode()).derive(root)


def _crc8(data: bytes) -> int:
    """CRC-8/SMBUS: polynomial 0x07, initial value 0."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ 0x07 if crc & 0x80 else crc << 1
    return crc & 0xFF
