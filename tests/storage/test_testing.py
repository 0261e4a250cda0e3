"""The other tools for authors of providers: faults, and the leak scan."""

import asyncio
import base64
import sqlite3
from pathlib import Path

import pytest

from strongroom.errors import StoreUnavailable
from strongroom.storage import KeyValueStore, MemoryProvider
from strongroom.testing import FaultyStore, leak_scan
from support.notes import Note

SECRET = "The vault's code is 7351, do not tell anyone of it."


@pytest.fixture
async def faulty() -> FaultyStore:
    return FaultyStore(await MemoryProvider().open("notes"))


async def test_a_rejected_call_does_nothing(faulty: FaultyStore) -> None:
    notes = KeyValueStore(faulty, Note, "notes")
    faulty.reject("apply", times=2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await notes.set("a", Note(text="x"))
    assert await notes.get("a") is None
    await notes.set("a", Note(text="x"))
    assert faulty.calls == ["apply", "apply", "read", "apply"]


async def test_a_call_whose_answer_is_lost_was_carried_out(faulty: FaultyStore) -> None:
    notes = KeyValueStore(faulty, Note, "notes")
    faulty.lose_answer("apply", error=OSError("no route to disk"))
    with pytest.raises(OSError, match="no route to disk"):
        await notes.set("a", Note(text="x"))
    assert await notes.get("a") == Note(text="x")


async def test_held_calls_wait(faulty: FaultyStore) -> None:
    notes = KeyValueStore(faulty, Note, "notes")
    with faulty.held():
        writing = asyncio.create_task(notes.set("a", Note(text="x")))
        await asyncio.wait([writing], timeout=0.01)
        assert not writing.done()
    assert await writing == 1


@pytest.mark.parametrize(
    "form",
    [
        SECRET.encode(),
        SECRET.encode("utf-16-le"),
        SECRET.encode("utf-16-be"),
        SECRET.encode().hex().encode(),
        SECRET.encode().hex().upper().encode(),
        *(base64.b64encode(b"xx"[:n] + SECRET.encode()) for n in range(3)),
        base64.b64encode(SECRET.encode() + b"y"),
        base64.urlsafe_b64encode(b"xx" + SECRET.encode()),
        SECRET.encode()[:20] + b"\0" * 4 + SECRET.encode()[20:],
    ],
)
@pytest.mark.parametrize("offset", [0, 1024 * 1024 - 20, 3 * 1024 * 1024])
def test_text_is_found_in_every_form_and_place(tmp_path: Path, form: bytes, offset: int) -> None:
    file = tmp_path / "below" / "data.db"
    file.parent.mkdir()
    file.write_bytes(b"\0" * offset + form + b"\0" * 100)
    leaks = leak_scan(tmp_path, [SECRET, "something else"])
    assert {(leak.path, leak.needle) for leak in leaks} == {(file, SECRET)}
    # One byte before: UTF-16 of one byte order behind a zero reads like the other.
    assert all(leak.offset is not None and leak.offset >= offset - 1 for leak in leaks)


def test_text_is_found_in_the_pages_of_a_database_and_in_names(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "plain.db")
    database.execute("CREATE TABLE t (v)")
    database.execute("INSERT INTO t VALUES (?)", ("-" * 4000 + SECRET * 3,))
    database.commit()
    database.close()
    (tmp_path / "the-secret-name.txt").touch()
    found = {(leak.path.name, leak.offset is None) for leak in leak_scan(tmp_path, [SECRET])}
    assert found == {("plain.db", False)}
    [leak] = leak_scan(tmp_path, ["the-secret-name"])
    assert leak.offset is None


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 5000)
    assert leak_scan(tmp_path, [SECRET]) == []


def test_a_text_that_chance_would_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short"):
        leak_scan(tmp_path, ["key"])
