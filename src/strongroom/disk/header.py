"""The first 24 bytes of an encrypted file, read and checked before SQLite touches the file.

SQLite3 Multiple Ciphers leaves them readable. Bytes 0 to 15 are ours (`strongroom.keys.derive`) and
say which key opens the file. Bytes 16 to 23 are SQLite's own: page size, journal mode, 32 reserved
bytes at the end of each page for nonce and tag, and so on.
"""

from __future__ import annotations

from pathlib import Path

from strongroom.disk.inspect import open_file
from strongroom.disk.remedies import put_back, set_aside
from strongroom.errors import FormatUnsupported, StoreDamaged, StoreNotEncrypted
from strongroom.keys.derive import MAGIC, PASSPHRASE, RANDOM_KEY, Header, crc8

PAGE_SIZE = 4096
RESERVED = 32
SALT_SIZE = 16
HEADER_SIZE = 24
PLAIN_MAGIC = b"SQLite format 3\0"

_SQLITE_BYTES = {  # bytes 16-23, by journal mode
    bytes([0x10, 0, mode, mode, RESERVED, 0x40, 0x20, 0x20]) for mode in (1, 2)
}


def read_header(path: Path) -> Header:
    """Read and check the header of an encrypted file.

    Raises:
        StoreNotEncrypted: The file is a plain SQLite database.
        FormatUnsupported: A newer Strongroom wrote it.
        StoreDamaged: The file is empty, shorter than one page, or the header was changed.
    """
    first = _first_page(path)
    if first.startswith(PLAIN_MAGIC):
        raise StoreNotEncrypted(
            f"{path} is a plain SQLite database, and an encrypted one was expected.",
            remedy=set_aside(path),
            path=path,
        )
    _check_size(path, first)
    if first[:2] != MAGIC or first[15] != crc8(first[:15]):
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
    first = _first_page(path)
    _check_size(path, first)
    if not first.startswith(PLAIN_MAGIC):
        raise _damaged(path, "its header is not that of an SQLite database")


def _first_page(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(PAGE_SIZE)


def _check_size(path: Path, first: bytes) -> None:
    if len(first) < PAGE_SIZE:
        raise _damaged(path, f"it has {len(first)} bytes and at least {PAGE_SIZE} are needed")


def _damaged(path: Path, how: str) -> StoreDamaged:
    return StoreDamaged(f"{path} is damaged: {how}.", remedy=put_back(path), path=path)
