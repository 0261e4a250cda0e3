"""Reads files as the documentation says, without our code, as another program would."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import unicodedata
from pathlib import Path

import apsw
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import BaseModel

from strongroom.disk.database import CIPHER, check_engine
from strongroom.errors import EngineUnsuitable
from strongroom.settings import StorageSettings
from strongroom.storage.provider import open_provider

HEX_KEY = "000102030405060708090a0b0c0d0e0f" * 2
BASE64_KEY = base64.urlsafe_b64encode(bytes.fromhex(HEX_KEY)).decode().rstrip("=")
PASSPHRASE = unicodedata.normalize("NFD", "ein Schlüssel aus Wörtern")


class Note(BaseModel):
    text: str
    more: int | None = None


async def fill(directory: Path, key: str) -> None:
    provider = await open_provider(
        StorageSettings(profile="encrypted-sqlite", directory=directory, master_key=key)
    )
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set("first", Note(text="Hello"))
    await provider.close()


def expand(root: bytes, label: str, namespace: str) -> bytes:
    """HKDF-Expand of RFC 5869 for one block."""
    return hmac.digest(root, f"{label}\0{namespace}".encode() + b"\x01", "sha256")


def crc8(data: bytes) -> int:
    crc = 0
    for bit in "".join(f"{byte:08b}" for byte in data + b"\0"):
        crc = (crc << 1) | int(bit)
        if crc & 0x100:
            crc ^= 0x107
    return crc


def open_file(path: Path, root: bytes, namespace: str) -> apsw.Connection:
    head = path.read_bytes()[:24]
    assert head[:2] == b"SR"
    assert head[11:15] == expand(root, "strongroom/check/v1", namespace)[:4]
    assert head[15] == crc8(head[:15])
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    page_key = expand(root, "strongroom/page/v1", namespace)
    connection.execute("PRAGMA cipher = 'chacha20'").fetchall()
    connection.execute(f"PRAGMA key = 'raw:{page_key.hex()}{head[:16].hex()}'").fetchall()
    return connection


@pytest.mark.parametrize("key", [HEX_KEY, BASE64_KEY, PASSPHRASE])
async def test_another_program_can_read_a_store(tmp_path: Path, key: str) -> None:
    await fill(tmp_path, key)
    path = tmp_path / "__keystore_encrypted_value.db"
    head = path.read_bytes()[:24]
    assert head[16:] == bytes.fromhex("1000010120402020")
    if key == PASSPHRASE:
        assert head[2] == 2
        derive = Argon2id(salt=head[:11], length=32, iterations=3, lanes=4, memory_cost=65536)
        root = derive.derive(unicodedata.normalize("NFC", key).encode())
    else:
        assert head[2] == 1
        root = hmac.digest(head[:11], bytes.fromhex(HEX_KEY), hashlib.sha256)
    keystore = open_file(path, root, "__keystore")
    content = json.loads(keystore.execute("SELECT content FROM keystore").get)
    keystore.close()

    entry = content["entries"]["notes"]
    assert entry["state"] == "live"
    path = tmp_path / "notes_encrypted_value.db"
    head = path.read_bytes()[:24]
    assert head[2] == 1
    assert head[3:11] == base64.b64decode(entry["key"]["file_id"])
    assert head[16:] == bytes.fromhex("1000020220402020")
    notes = open_file(path, base64.b64decode(entry["key"]["secret"]), "notes")
    rows = notes.execute("SELECT key, revision, expires, value FROM record").fetchall()
    notes.close()
    assert rows == [("first", 1, None, b'\x01\x00\x00{"text":"Hello","more":null}')]


async def test_no_two_files_share_a_file_id(tmp_path: Path) -> None:
    for name in "one", "two":
        await fill(tmp_path / name, HEX_KEY)
    ids = [path.read_bytes()[3:11] for path in tmp_path.glob("*/*.db")]
    assert len(ids) == len(set(ids)) == 6


async def test_each_write_of_the_keystore_gives_it_a_new_file_id(tmp_path: Path) -> None:
    await fill(tmp_path, HEX_KEY)
    path = tmp_path / "__keystore_encrypted_value.db"
    before = path.read_bytes()[3:11]
    provider = await open_provider(
        StorageSettings(profile="encrypted-sqlite", directory=tmp_path, master_key=HEX_KEY)
    )
    await provider.get_kv_store(Note, "more")
    await provider.close()
    assert path.read_bytes()[3:11] != before


def test_the_installed_engine_has_the_cipher_with_its_known_parameters() -> None:
    connection = apsw.Connection(":memory:")
    assert connection.execute(f"PRAGMA cipher = '{CIPHER}'").get == "chacha20"
    assert connection.execute("PRAGMA legacy").get in ("0", 0)
    assert connection.execute("PRAGMA legacy_page_size").get in ("4096", 4096)
    assert apsw.SQLITE_CHECKPOINT_NOOP == -1
    check_engine()


def test_an_engine_that_cannot_encrypt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.disk.database.ENGINE", None)
    with pytest.raises(EngineUnsuitable, match="apsw-sqlite3mc"):
        check_engine()


def test_an_engine_without_arrays_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsw.compile_options", ("ENABLE_FTS5",))
    with pytest.raises(EngineUnsuitable, match="cannot bind arrays"):
        check_engine()
