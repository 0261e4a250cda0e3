"""The command line does what it says, in JSON too, and a mistake gets a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from strongroom.admin.socket import SOCKET
from strongroom.cli.main import app, main
from strongroom.keys.master import new_master_key
from strongroom.messaging.stored import DEAD_LETTERS, DeadLetter, Direction
from strongroom.settings import StorageSettings
from strongroom.storage import Key
from strongroom.storage.provider import open_provider
from support.notes import Note, provider_of

SECRET = "Meet me at the old mill"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """Runs a command on a directory with one store, `notes`, of three records."""
    for variable in ("FAME_STORAGE_PROFILE", "FAME_STORAGE_MASTER_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("FAME_STORAGE_DB_DIRECTORY", str(tmp_path / "data"))
    monkeypatch.setenv("FAME_STORAGE_MASTER_KEY_FILE", str(tmp_path / "master.key"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "master.key").write_text(new_master_key() + "\n")
    asyncio.run(fill(tmp_path))

    def command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["strongroom", *arguments])
        capfdbinary.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfdbinary.readouterr()
        assert b"Traceback" not in err
        return Done(code, out.decode(), err.decode())

    return command


async def fill(directory: Path) -> None:
    settings = StorageSettings(
        profile="encrypted-sqlite",
        directory=directory / "data",
        master_key_file=directory / "master.key",
    )
    provider = await open_provider(settings)
    notes = await provider.get_kv_store(Note, "notes")
    await notes.set_many({key: Note(text=f"{SECRET} {key}") for key in "abc"})
    await provider.close()


def commands() -> list[list[str]]:
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [[name, *([part] if part else [])] for part in (inner or [""])]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.code == 0
    assert f"strongroom {' '.join(command)}" in done.out.partition("Options")[0].split("\n", 2)[2]


def test_records_are_listed_read_written_and_deleted(run: Run) -> None:
    assert [(n["namespace"], n["records"]) for n in run("store", "ls", "--json").json][1] == (
        "notes",
        3,
    )
    assert json.loads(run("store", "get", "notes", "a").out) == {"text": f"{SECRET} a"}
    assert run("store", "put", "notes", "d", '{"text": "new"}').code == 0
    [record] = run("store", "get", "notes", "d", "--json").json
    assert (record["value"], record["revision"], record["version"]) == ({"text": "new"}, 4, 0)
    assert [r["key"] for r in run("store", "scan", "notes", "--json").json] == ["a", "b", "c", "d"]
    assert run("store", "scan", "notes", "--reverse", "--limit", "1", "--keys-only").out == "d\n"
    assert "d is deleted" in run("store", "delete", "notes", "d", "x").out
    assert "revision     5" in run("store", "stats", "notes").out


def test_what_was_put_by_hand_is_what_the_program_reads(run: Run, tmp_path: Path) -> None:
    run("store", "put", "notes", "d", ' { "text" : "by\\nhand" } ')

    async def read() -> Note | None:
        provider = await open_provider(
            StorageSettings(
                profile="encrypted-sqlite",
                directory=tmp_path / "data",
                master_key_file=tmp_path / "master.key",
            )
        )
        value = await (await provider.get_kv_store(Note, "notes")).get("d")
        await provider.close()
        return value

    assert asyncio.run(read()) == Note(text="by\nhand")


def test_an_export_comes_back_as_it_was(run: Run, tmp_path: Path) -> None:
    exported = run("store", "export", "notes")
    (tmp_path / "notes.jsonl").write_text(exported.out)
    done = run("store", "import", "copy", "notes.jsonl", "--json")
    assert done.json == [{"lines": 3, "stored": 3, "replaced": 0}]
    assert run("store", "import", "copy", "notes.jsonl", "--json").json[0]["replaced"] == 3
    assert [r["value"] for r in run("store", "export", "copy").json] == [
        r["value"] for r in exported.json
    ]
    assert run("store", "export", "notes", "--out", "notes.jsonl").code == 2
    events = [line["event"] for line in run("audit", "show", "--json").json]
    assert events.count("exported") == 2


def test_bytes_and_tuples_come_back_from_an_export(run: Run, tmp_path: Path) -> None:
    key, data = Key("a", 7, b"\\0"), bytes(range(256))

    async def blobs(namespace: str, value: bytes | None) -> bytes | None:
        secret = (tmp_path / "master.key").read_text().strip()
        async with provider_of(tmp_path / "data", key=secret) as provider:
            store = await provider.get_bytes_store(namespace, owner="mine/1")
            if value is not None:
                await store.set(key, value)
            return await store.get(key)

    asyncio.run(blobs("blobs", data))
    exported = run("store", "export", "blobs", "--out", "blobs.jsonl")
    assert exported.code == 0, exported.err
    assert json.loads((tmp_path / "blobs.jsonl").read_text())["owner"] == "mine/1"
    assert run("store", "import", "copy", "blobs.jsonl").code == 0
    assert asyncio.run(blobs("copy", None)) == data
    assert run("store", "get", "blobs", str.__str__(key)).code == 0


def test_an_import_is_checked_before_anything_is_stored(run: Run, tmp_path: Path) -> None:
    lines = '{"key": "x", "value": {"text": "x"}}\n'
    for bad in ("no JSON\n", '{"key": ""}\n', '{"key": "y"}\n', '{"key": "y", "base64": "?"}\n'):
        (tmp_path / "bad.jsonl").write_text(lines + bad)
        done = run("store", "import", "notes", "bad.jsonl")
        assert done.code == 38
        assert "Line 2" in done.err
        assert "Try: " in done.err
    assert run("store", "get", "notes", "x").code == 20


def test_a_drop_says_what_it_means_and_asks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    refused = run("store", "drop", "notes")
    assert refused.code == 1
    assert "backups" in refused.out
    assert run("store", "drop", "notes", "--yes").code == 0
    assert run("store", "get", "notes", "a").code == 20


def test_keys_are_made_checked_and_rotated(run: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    [checked] = run("key", "check", "--json").json
    assert checked["opens"]
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    assert run("key", "new", "--out", "new.key").code == 0
    assert (tmp_path / "new.key").stat().st_mode & 0o777 == 0o600
    assert run("key", "rotate").code == 2
    assert run("key", "rotate", "--new-key-file", "new.key").code == 0
    assert run("key", "check").code == 24
    (tmp_path / "new.key").replace(tmp_path / "master.key")
    assert run("key", "check").code == 0
    assert "notes now uses the new data key" in run("key", "rotate", "--data").out
    states = run("key", "status", "--json").json
    assert {s["state"] for s in states} == {"live", "retired"}
    assert sum(s["records"] for s in states if s["namespace"] == "notes") == 3


def test_a_recovery_sheet_gives_the_key_back(run: Run, tmp_path: Path) -> None:
    assert run("key", "sheet", "--out", "sheet.txt").code == 0
    assert run("key", "sheet", "--read", "sheet.txt").out == (tmp_path / "master.key").read_text()
    sheet = (tmp_path / "sheet.txt").read_text()
    line = sheet.splitlines()[3]
    (tmp_path / "sheet.txt").write_text(sheet.replace(line, line.replace(line[5:9], "0000")))
    done = run("key", "sheet", "--read", "sheet.txt")
    assert done.code == 12
    assert "Line 3" in done.err


def test_doctor_finds_what_is_wrong_and_says_what_to_do(run: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert run("doctor").code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    path = tmp_path / "data" / "notes_encrypted_value.db"
    damaged = bytearray(path.read_bytes())
    damaged[2 * 4096 + 17] ^= 1
    path.write_bytes(damaged)
    path.chmod(0o644)
    done = run("doctor", "--json")
    assert done.code == 39
    problems = [finding for finding in done.json if finding["level"] == "problem"]
    assert len(problems) == 2
    assert all(finding["remedy"] for finding in problems)
    assert {finding["namespace"] for finding in problems} == {None, "notes"}
    assert str(path) in run("doctor").out
    assert "2 problems" in done.err


def test_doctor_says_nothing_twice_when_the_node_stops_in_the_middle(
    run: Run, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(str(tmp_path / "data" / SOCKET))
        node.listen()

        def answer_half() -> None:
            with node.accept()[0] as operator:
                operator.recv(4096)
                operator.sendall(b'{"item": {"level": "ok", "what": "The first finding."}}\n')

        stopping = threading.Thread(target=answer_half)
        stopping.start()
        done = run("doctor")
        stopping.join()
    assert done.code == 36
    assert [line.split(maxsplit=1) for line in done.out.splitlines()] == [
        ["ok", "The first finding."]
    ]
    assert "before its answer was complete" in done.err


def test_the_audit_log_is_shown_and_verified(run: Run) -> None:
    assert "opened" in run("audit", "show").out
    assert "are there and unchanged" in run("audit", "verify").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("store", "get", "nots", "a"), 20, "Try: strongroom store ls"),
        (("store", "get", "notes", "z"), 20, "Try: strongroom store scan notes"),
        (("store", "put", "notes", "a", "no JSON"), 2, "Try: "),
        (("store", "put", "__node_meta", "node", "{}"), 20, "the node's own"),
        (("store", "ls", "-d", "nowhere"), 10, "Try: another directory"),
        (("status",), 36, "Try: strongroom sentinel"),
        (("agent", "nothing:Here", "--address", "a@b"), 2, "Try: my_module:MyAgent"),
        (("agent", "json:JSONDecoder", "--address", "a@b"), 2, "not a subclass of BaseAgent"),
        (("nonsense",), 2, "--help"),
        (("key", "sheet", "--read", "nowhere"), 12, "cannot be read"),
    ],
)
def test_a_mistake_gets_a_sentence_and_an_exit_status(
    run: Run, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (
            ("store", "get", "notes", "z"),
            20,
            {
                "type": "KeyMissing",
                "what": "'notes' has no record 'z'.",
                "remedy": "strongroom store scan notes",
            },
        ),
        (("status",), 36, {"type": "OwnerUnreachable", "remedy": "strongroom sentinel"}),
        (
            ("store", "put", "notes", "a", "no JSON"),
            2,
            {"remedy": '\'{"text": "Hello"}\', in single quotes'},
        ),
        (("key", "rotate"), 2, {"what": "The new master key is missing."}),
        (("store", "ls", "-d"), 2, {"remedy": "strongroom --help"}),
        (("store", "get", "notes"), 2, {"remedy": "strongroom --help"}),
        (("key", "new", "--out", "master.key"), 2, {"remedy": "another name"}),
    ],
)
def test_with_json_an_error_is_one_json_object(
    run: Run, arguments: tuple[str, ...], code: int, error: dict[str, str]
) -> None:
    done = (
        run(*arguments, "--json") if arguments[-1] != "-d" else run(*arguments[:-1], "--json", "-d")
    )
    assert (done.code, done.out) == (code, "")
    [line] = done.err.splitlines()
    said = json.loads(line)
    assert {**said, **error} == said


def test_an_error_in_json_has_its_fields(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "data" / "notes_encrypted_value.db"
    path.unlink()
    done = run("store", "ls", "--json")
    assert done.code == 27
    error = json.loads(done.err)
    assert (error["type"], error["path"], error["namespace"]) == (
        "StoreMissing",
        str(path),
        "notes",
    )


MODULES = {
    "broken": "import json\n\nimport no_such_library\n",
    "syntax": "def f(:\n",
    "deep": "import broken\n",
    "raises": "from pathlib import Path\n\nPath('nowhere').read_text()\n",
    "agents": "from strongroom import BaseAgent\n\nclass Storage(BaseAgent): ...\nNAME = 1\n",
}


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("broken:A", ["broken.py, line 3: ModuleNotFoundError: No module named 'no_such_library'"]),
        ("syntax:A", ["syntax.py, line 1: invalid syntax"]),
        ("deep:A", ["broken.py, line 3: ModuleNotFoundError"]),
        ("raises:A", ["raises.py, line 3: FileNotFoundError", "nowhere"]),
        ("agents:Storge", ["agents:Storge does not exist.", "Try: agents:Storage"]),
        ("agents", ["Try: agents:Storage"]),
        ("agents:NAME", ["agents:NAME is not a subclass of BaseAgent.", "Try: agents:Storage"]),
        ("agnets:Storage", ["No module named 'agnets'", "Try: agents:Storage"]),
    ],
)
def test_an_agent_that_cannot_be_loaded_is_reported_with_its_file_and_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, says: list[str]
) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    importlib.invalidate_caches()
    done = run("agent", which, "--address", "a@fame.fabric")
    assert (done.code, done.out) == (2, "")
    for part in says:
        assert part in done.err


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("strongroom ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("store", "export", "notes", "--out", "out.jsonl"),
        ("store", "import", "copy", "notes.jsonl"),
        ("doctor",),
        ("key", "rotate", "--data"),
    ],
    ids=" ".join,
)
def test_a_long_command_shows_its_progress_on_a_terminal(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "notes.jsonl").write_text(run("store", "export", "notes").out)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "strongroom", *arguments]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, cwd=tmp_path, env=environment
    ) as done:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal ends with its last process
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert done.returncode == 0
    assert "━".encode() in shown


def test_no_secret_is_shown_by_a_table_or_a_finding(run: Run, tmp_path: Path) -> None:
    key = (tmp_path / "master.key").read_text().strip()
    shown = "".join(
        run(*command).out
        for command in (("doctor",), ("key", "status"), ("audit", "show"), ("store", "ls"))
    )
    assert key not in shown
    assert SECRET not in shown


def test_the_package_loads_without_its_command_line() -> None:
    script = (
        "import sys, strongroom; strongroom.Sentinel, strongroom.BaseAgent, strongroom.Fabric; "
        "sys.exit(bool({'typer', 'rich', 'apsw', 'strongroom.cli'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_messages_that_were_set_aside_are_shown_retried_and_dropped(
    run: Run, tmp_path: Path
) -> None:
    async def set_aside() -> None:
        settings = StorageSettings(
            profile="encrypted-sqlite",
            directory=tmp_path / "data",
            master_key_file=tmp_path / "master.key",
        )
        provider = await open_provider(settings)
        store = await provider.own_store(DeadLetter, DEAD_LETTERS)
        text = '{"id":"x","to":"a@b.c","frame":{"type":"Data","payload":"hello"}}'
        for key in ("one", "two", "three"):
            letter = DeadLetter(direction=Direction.RECEIVED, envelope=text, reasons=["too late"])
            await store.set(key, letter)
        await provider.close()

    assert run("delivery", "ls").out == ""
    asyncio.run(set_aside())
    assert "too late" in run("delivery", "ls").out
    [shown] = run("delivery", "show", "one", "--json").json
    assert shown["envelope"]["frame"]["payload"] == "hello"
    assert run("delivery", "drop").code == 2
    assert run("delivery", "drop", "one", "--all").code == 2
    assert "Try: strongroom delivery ls" in run("delivery", "show", "four").err
    assert run("delivery", "retry", "one").out == "Message one will be tried again.\n"
    assert run("delivery", "drop", "two").out == "Message two is deleted.\n"
    assert [each["id"] for each in run("delivery", "drop", "--all", "--json").json] == ["three"]


@pytest.mark.parametrize("name", ["json", "typer", "msgspec", "strongroom", "secrets"])
def test_a_file_in_the_working_directory_takes_no_modules_place(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')")
    command = [sys.executable, "-m", "strongroom", "--version"]
    if name == "strongroom":  # Python looks there for it before any of our code runs
        command = [str(Path(sys.executable).with_name("strongroom")), "--version"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout[:11]) == (0, "strongroom "), result.stderr
