"""The changes of a keystore since it was written whole, in a file beside it.

Each change is appended and synced, so that it costs the same however many namespaces there are.
The keystore is written whole again when a node starts and stops, and when the changes have outgrown
it. Each record is encrypted, and bound to its keystore and its place. One that a crash has cut off
at the end was never acknowledged. docs/file-format.md describes the bytes.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from strongroom.disk.directory import CHANGES, give, sync_directory, writing
from strongroom.disk.inspect import open_file
from strongroom.disk.remedies import put_back
from strongroom.errors import StoreDamaged

MAGIC = b"SRchange"
ID_SIZE = 16
_LENGTH = struct.Struct(">I")
_PLACE = struct.Struct(">Q")
_CRC = struct.Struct(">I")
_NONCE_SIZE = 12


def changes_of(keystore: Path) -> Path:
    """Where the changes of a keystore are."""
    return keystore.with_name(CHANGES)


class Sealer:
    """Encrypts and authenticates the records of one file; without a key, it only checks them."""

    def __init__(self, key: bytes | None, changes_id: bytes) -> None:
        self.changes_id = changes_id
        self._cipher = ChaCha20Poly1305(key) if key else None

    def seal(self, place: int, change: bytes) -> bytes:
        """A record, for a place in the file."""
        if self._cipher is None:
            sealed = _CRC.pack(zlib.crc32(self._bound(place) + change)) + change
        else:
            nonce = secrets.token_bytes(_NONCE_SIZE)
            sealed = nonce + self._cipher.encrypt(nonce, change, self._bound(place))
        return _LENGTH.pack(len(sealed)) + sealed

    def open(self, place: int, sealed: bytes) -> bytes | None:
        """What is in a record without its length; None if it is not valid in this place."""
        if self._cipher is None:
            change = sealed[_CRC.size :]
            return change if self.seal(place, change)[_LENGTH.size :] == sealed else None
        try:
            nonce, data = sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:]
            return self._cipher.decrypt(nonce, data, self._bound(place))
        except (InvalidTag, ValueError):
            return None

    def _bound(self, place: int) -> bytes:
        return self.changes_id + _PLACE.pack(place)


class ChangesFile:
    """The file to which changes are appended. Blocks; one thread at a time."""

    def __init__(self, path: Path, sealer: Sealer) -> None:
        """Begin the file anew.

        Raises:
            StoreUnavailable: The disk refuses.
        """
        self._path = path
        self._sealer = sealer
        self.size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with writing(path):
            path.unlink(missing_ok=True)
            self._descriptor = os.open(path, flags, 0o600)
        try:
            with writing(path):
                give(self._descriptor, path.parent.stat())
                self._write(MAGIC + sealer.changes_id)
                sync_directory(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, change: bytes) -> None:
        """Add a change; it is durable when this returns. After an error, begin a new file.

        Raises:
            StoreUnavailable: The disk refuses.
        """
        with writing(self._path):
            self._write(self._sealer.seal(self.size, change))

    def _write(self, data: bytes) -> None:
        os.pwrite(self._descriptor, data, self.size)
        os.fsync(self._descriptor)
        self.size += len(data)

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_changes(keystore: Path, sealer: Sealer) -> Iterator[bytes]:
    """The changes of a keystore, oldest first. Those of an earlier keystore are none of them.

    Raises:
        StoreDamaged: A change is not valid, and others follow it.
    """
    path = changes_of(keystore)
    if not os.path.lexists(path):
        return
    with open_file(path) as file:
        data = file.read()
    at = len(MAGIC) + ID_SIZE
    if data[:at] != MAGIC + sealer.changes_id:
        return
    while (change := _at(data, at, sealer)) is not None:
        yield change[0]
        at = change[1]
    if any(_at(data, later, sealer) for later in range(at + 1, len(data))):
        raise StoreDamaged(
            f"{path} is damaged: the record at byte {at} is not valid, and others follow.",
            remedy=put_back(keystore),
            path=path,
        )


def _at(data: bytes, at: int, sealer: Sealer) -> tuple[bytes, int] | None:
    """The change at a place, and the place of the next; None if there is no valid record."""
    start = at + _LENGTH.size
    if start > len(data):
        return None
    end = start + _LENGTH.unpack_from(data, at)[0]
    change = sealer.open(at, data[start:end]) if start < end <= len(data) else None
    return None if change is None else (change, end)
