"""Hostile text, closed files, cut exports: each ends with a sentence, and never half done."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from strongroom.cli.main import main
from strongroom.keys.master import new_master_key
from strongroom.printable import printable
from support.notes import fill

STRONGROOM = f"{sys.executable} -m strongroom"
HOSTILE = "k\x1b[31m\nsecond\u202eline\x9b"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain directory with three notes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAME_STORAGE_PROFILE", "sqlite")
    monkeypatch.setenv("FAME_STORAGE_DB_DIRECTORY", str(tmp_path / "data"))
    asyncio.run(fill(tmp_path / "data", *"abc", profile="sqlite", key=None))
    return tmp_path / "data"


def shell(command: str, given: bytes = b"", **more: Any) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        input=given,
        check=False,
        capture_output=True,
        env={**os.environ, **more},
        timeout=60,
    )
    assert b"Traceback" not in done.stderr
    assert b"defect" not in done.stderr
    return done


@pytest.mark.slow
def test_what_a_terminal_would_obey_is_escaped_for_people_and_exact_in_json() -> None:
    value = json.dumps({"text": HOSTILE}, ensure_ascii=False)
    key = f"$'{HOSTILE}'".replace("\x1b", "\\x1b").replace("\n", "\\n")
    said = shell(f"{STRONGROOM} store put notes {key} '{value}'")
    shown = shell(f"{STRONGROOM} store scan notes; {STRONGROOM} store get notes {key}")
    missing = shell(f"{STRONGROOM} store get notes {key}x; {STRONGROOM} store get n$'\\x1b' a")
    for text in (said.stdout, shown.stdout, missing.stderr):
        assert text
        for bad in ("\x1b", "\u202e", "\x9b"):
            assert bad not in text.decode()
    assert len(shown.stdout.splitlines()) == 5
    assert json.loads(shown.stdout.splitlines()[-1]) == {"text": HOSTILE}
    exact = shell(f"{STRONGROOM} store scan notes --json")
    assert json.loads(exact.stdout.splitlines()[-1])["key"] == HOSTILE


def test_printable_leaves_ordinary_text_alone() -> None:
    assert printable("ä \N{WOMAN}\u200d\N{GIRL} \\n 漢字") == "ä \N{WOMAN}\u200d\N{GIRL} \\n 漢字"
    assert printable("\udcff\x7f\t") == "\\udcff\\u007f\\t"


def test_an_export_goes_through_a_pipe_into_an_import(tmp_path: Path) -> None:
    done = shell(f"{STRONGROOM} store export notes | {STRONGROOM} store import copy - --json")
    assert json.loads(done.stdout) == {"lines": 3, "stored": 3, "replaced": 0}
    done = shell(f"{STRONGROOM} store import other <({STRONGROOM} store export copy) --json")
    assert json.loads(done.stdout)["stored"] == 3
    os.mkfifo(tmp_path / "pipe")
    done = shell(
        f"{STRONGROOM} store export other > pipe & {STRONGROOM} store import last pipe --json"
    )
    assert json.loads(done.stdout)["stored"] == 3


def test_an_export_of_nothing_can_be_imported() -> None:
    assert shell(f"{STRONGROOM} store delete notes a b c").returncode == 0
    done = shell(f"{STRONGROOM} store export notes | {STRONGROOM} store import copy - --json")
    assert json.loads(done.stdout) == {"lines": 0, "stored": 0, "replaced": 0}


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_cut_export_is_refused_unless_asked_for(tmp_path: Path, lines: int) -> None:
    shell(f"{STRONGROOM} store export notes | head -n {lines} > cut.jsonl")
    done = shell(f"{STRONGROOM} store import copy cut.jsonl")
    assert done.returncode == 38
    assert f"cut after line {lines}".encode() in done.stderr
    assert b"Try: " in done.stderr
    assert b"copy" not in shell(f"{STRONGROOM} store ls").stdout
    done = shell(f"{STRONGROOM} store import copy cut.jsonl --partial --json")
    assert json.loads(done.stdout)["stored"] == lines


@pytest.mark.parametrize(
    ("command", "given", "status", "says"),
    [
        (
            "store import copy -",
            b'{"key":"a","value":1,"expires":"2030-01-01T00:00:00"}',
            38,
            "zone",
        ),
        ("store import copy -", b'{"key":"a","value":1,"version":99999999}', 38, "version"),
        ("store import copy -", b'{"key":"a","value":1,"revision":9999999999999999999}', 38, "rev"),
        ("store import copy -", b'{"key":"\xff","value":1}', 38, "Line 1"),
        ("store import copy -", b'{"key":"a","value":' + b"[" * 100_000, 38, "Line 1"),
        ("store import copy data", b"", 2, "Is a directory"),
        ("store import copy nowhere", b"", 2, "No such file"),
        ("store put notes a -", b"\xff\xfe", 2, "JSON"),
        ("store put notes a -", b"[" * 100_000, 2, "JSON"),
        ("store put notes a 1 --version 70000", b"", 2, "65535"),
        ("store put notes \udcff 1", b"", 2, "UTF-8"),
        ("store get notes \udcff --json", b"", 2, "UTF-8"),
        ("store scan notes --limit 99999999999999999999", b"", 2, "--limit"),
        ("store ls -d data/notes.db", b"", 20, "is a file, and not a directory"),
        (f"store ls -d {'d' * 300}", b"", 20, "too long"),
        ("key sheet --read data", b"", 12, "Is a directory"),
        ("key sheet --read -", b"\xff", 12, "not UTF-8"),
        ("key new --out data", b"", 2, "File exists"),
        ("key new --out nowhere/key", b"", 2, "No such file"),
        ("call a@b _call", b"", 2, "not an operation"),
        ("call a@b add --timeout inf", b"", 2, "timeout"),
    ],
)
def test_a_users_mistake_is_a_sentence_with_its_status(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *,
    command: str,
    given: bytes,
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["strongroom", *shlex.split(command)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    with pytest.raises(SystemExit) as end:
        main()
    said = capfd.readouterr().err
    assert end.value.code == status, said
    assert says in said.replace("\n", " ")
    assert "defect" not in said


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("store import copy - <&-", 2, "input is closed"),
        ("store put notes a - <&-", 2, "input is closed"),
        ("store get notes a >&-", 1, "output is closed"),
        ("store ls >&-", 1, "output is closed"),
        ("store ls > /dev/full", 1, "No space left"),
        ("store drop notes <&-", 2, "input is closed"),
    ],
)
def test_a_closed_or_full_file_is_reported(command: str, status: int, says: str) -> None:
    done = shell(f"{STRONGROOM} {command}")
    assert done.returncode == status, done.stderr
    assert says in done.stderr.decode().replace("\n", " ")


def test_a_command_with_all_standard_files_closed_harms_no_store() -> None:
    shell(f"{STRONGROOM} store put notes a 7 <&- >&- 2>&-")
    done = shell(f"{STRONGROOM} store get notes a")
    assert done.stdout == b"7\n"
    assert shell(f"{STRONGROOM} doctor").returncode == 0


def test_an_agent_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from strongroom import BaseAgent\n\n\nclass Mine(BaseAgent):\n"
        "    def __init__(self, name):\n        pass\n"
    )
    done = shell(f"{STRONGROOM} agent mine:Mine --address a@fame.fabric")
    assert done.returncode == 2
    assert b"cannot be made" in done.stderr


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"key": f"{n:06}", "value": {"text": "x" * 2000}}) + "\n" for n in range(5000)
    )
    assert shell(f"{STRONGROOM} store import big -", lines.encode()).returncode == 0
    command = [*STRONGROOM.split(), "store", "export", "big", "--out", "big.jsonl"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as export:
        while not (begun := list(tmp_path.glob(".*.new"))) or not begun[0].stat().st_size:
            assert export.poll() is None
            time.sleep(0.001)
        assert not (tmp_path / "big.jsonl").exists()
        export.send_signal(signal.SIGINT)
    assert export.returncode != 0
    assert not list(tmp_path.glob("*big*"))
    assert not list(tmp_path.glob(".*.new"))
    assert shell(f"{STRONGROOM} store export nowhere --out nowhere.jsonl").returncode == 20
    assert not (tmp_path / "nowhere.jsonl").exists()
    assert shell(f"{STRONGROOM} store export big --out big.jsonl").returncode == 0
    assert (tmp_path / "big.jsonl").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "big.jsonl").read_text().splitlines()) == 5000
    assert not list(tmp_path.glob(".*.new"))


def test_a_new_master_key_comes_from_standard_input_and_stays_here_if_nothing_needs_it(
    tmp_path: Path,
) -> None:
    key = new_master_key().encode()
    rotate = f"{STRONGROOM} key rotate --new-key-file -"
    done = shell(rotate, key)
    assert (done.returncode, b"is not encrypted" in done.stderr) == (20, True)
    old = new_master_key()
    asyncio.run(fill(tmp_path / "other", "a", key=old))
    former: dict[str, Any] = {
        "FAME_STORAGE_PROFILE": "encrypted-sqlite",
        "FAME_STORAGE_DB_DIRECTORY": str(tmp_path / "other"),
        "FAME_STORAGE_MASTER_KEY": old,
    }
    assert shell(rotate, b'"' + key + b'"\n', **former).returncode == 12
    assert shell(rotate, key + b"\n", **former).returncode == 0
    new = former | {"FAME_STORAGE_MASTER_KEY": key.decode()}
    assert shell(f"{STRONGROOM} key check", **new).returncode == 0
