"""How the value of a record is sealed, bound to its namespace and its key.

    byte 0      format: 1
    byte 1      algorithm: 1, XAES-256-GCM
    2 to 9      the id of the data key
    10 to 33    nonce
    from 34     sealed: life (8 bytes), version, created, updated, expires (0: never), the length of
                the value (4 bytes), the value

A life is random and begins when the key comes to be. The version is 1 at first, and one more with
each write of that life, so an older value can be told from a newer one.
"""

from __future__ import annotations

import secrets
import struct

import msgspec
from cryptography.exceptions import InvalidTag

from strongroom.errors import ForeignStore, StoreDamaged
from strongroom.keys.xaes import NONCE_BYTES, Xaes
from strongroom.storage.records import Record
from strongroom.storage.sealed.keystore import DataKey, Keystore

_HEADER = struct.Struct(">BB8s")
_BODY = struct.Struct(">8sQQQQI")
_SHORTEST = _HEADER.size + NONCE_BYTES + _BODY.size + 16
_KIND = (1, 1)


class State(msgspec.Struct, frozen=True, gc=False):
    """What the next write of a record continues: its life and version, and its times."""

    life: bytes
    version: int
    created: int
    expires: int | None
    revision: int


def next_state(before: State | None, now: int, expires: int | None) -> State:
    """The state of a record that is written now; its revision is not known yet (0)."""
    if before is None:
        return State(secrets.token_bytes(8), 1, now, expires, 0)
    return State(before.life, before.version + 1, before.created, expires, 0)


class Values:
    """Seals and opens the values of one namespace."""

    def __init__(self, keystore: Keystore, namespace: str, owner: str) -> None:
        """Use the data keys of `namespace`, for the records of the node `owner` (`""`: of all)."""
        self._keystore = keystore
        self._namespace = namespace
        self._boxes: dict[bytes, Xaes] = {}
        name = f"{owner}/{namespace}" if owner else namespace
        self._bound_to = b"strongroom/record/v1\0" + keystore.space_id + name.encode() + b"\0"

    def seal(self, token: str, value: bytes, state: State, now: int) -> bytes:
        """`value` for the record that `token` stands for."""
        key = self._keystore.keys(self._namespace)[-1]
        header = _HEADER.pack(*_KIND, key.id)
        body = _BODY.pack(
            state.life, state.version, state.created, now, state.expires or 0, len(value)
        )
        return header + self._box(key).seal(body + value, self._bound_to + header + token.encode())

    def open(self, key: str, token: str, record: Record) -> tuple[Record, State]:
        """The record `key`, for which `token` stands, as it was before sealing.

        Raises:
            StoreDamaged: It was changed, or was not stored under this key in this namespace.
            ForeignStore: It is sealed under a data key that the keystore does not have.
        """
        sealed = record.value
        if len(sealed) < _SHORTEST:
            raise self._damaged(key)
        *kind, key_id = _HEADER.unpack_from(sealed)
        if tuple(kind) != _KIND:
            raise self._damaged(key)
        keys = {each.id: each for each in self._keystore.keys(self._namespace)}
        if key_id not in keys:
            raise ForeignStore(
                f"The record {key!r} of {self._namespace!r} is sealed under a data key that the "
                "keystore does not have.",
                remedy="the space's newest keystore",
                namespace=self._namespace,
            )
        header = sealed[: _HEADER.size]
        try:
            body = self._box(keys[key_id]).open(
                sealed[_HEADER.size :], self._bound_to + header + token.encode()
            )
        except InvalidTag:
            raise self._damaged(key) from None
        life, version, created, updated, expires, length = _BODY.unpack_from(body)
        value = body[_BODY.size : _BODY.size + length]
        opened = Record(key, value, record.revision, created, updated, expires or None)
        return opened, State(life, version, created, expires or None, record.revision)

    def _box(self, key: DataKey) -> Xaes:
        if key.id not in self._boxes:
            self._boxes[key.id] = Xaes(key.secret)
        return self._boxes[key.id]

    def _damaged(self, key: str) -> StoreDamaged:
        return StoreDamaged(
            f"The record {key!r} of {self._namespace!r} was changed on the server, or was moved "
            "there from elsewhere.",
            remedy="find out who can write to the server, and restore the record from a backup",
            namespace=self._namespace,
        )
