"""What the documentation shows is true: its code and its commands run as they are written."""

import ast
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from strongroom import BaseAgent, Fabric, Sentinel, Settings, operation
from strongroom.cli.main import app
from strongroom.settings import ATTACH_PATH, variables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PROSE = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("examples/*/*.md")])
MANUAL = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


class Block(NamedTuple):
    """A block of code: its language, its text, and the line before it."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the reader is to save it as, which its first line names."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named else None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(each[1], each[2], text.count("\n", 0, each.start(2))) for each in found]


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- code ---------------------------------------------------------------------------------------

TUTORIALS = [page for page in MANUAL if any(block.file for block in blocks(page))]
"""Pages with files to save and commands to type; the other pages' code runs in this process."""

ELSEWHERE = {DOCS / "integrations.md"}
"""Pages whose code needs other frameworks: tests/integrations runs it."""

REFERENCES = [
    page
    for page in MANUAL
    if page not in {*TUTORIALS, *ELSEWHERE}
    and any(block.language == "python" for block in blocks(page))
]


class Storage(BaseAgent):
    """Answers the calls of pages that show a caller alone."""

    @operation
    async def store_value(self, key: str, value: str) -> dict[str, str]:
        return {key: value}


@pytest.fixture
async def fabric(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A sentinel, which FAME_DIRECT_ADMISSION_URL names, and a `storage@fame.fabric` under it."""
    for name in [name for name in os.environ if name.startswith("FAME_")]:
        monkeypatch.delenv(name)
    async with Sentinel(Settings(listener_port=0)) as hub:
        url = f"ws://127.0.0.1:{hub.port}{ATTACH_PATH}"
        monkeypatch.setenv("FAME_DIRECT_ADMISSION_URL", url)
        async with Fabric(Settings(admission_url=url)) as node:
            await node.serve(Storage(), "storage@fame.fabric")
            yield


@pytest.mark.parametrize("page", REFERENCES, ids=id_of)
@pytest.mark.usefixtures("fabric")
async def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page):
        if block.language == "python":
            # Blank lines before the code, so that a traceback shows the page's own line.
            source = "\n" * block.line + block.text
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(source, str(page), "exec", flags=flags, dont_inherit=True)
            result = eval(code, names)
            if inspect.isawaitable(result):
                await result


# --- commands -----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Terminal:
    """A shell that types a page's commands, and waits for what they start to be ready."""

    def __init__(self, folder: Path) -> None:
        self.port, self.http_port = free_port(), free_port()
        self.ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ready.bind(str(folder / "ready"))
        self.ready.settimeout(30)
        self.output = (folder / "output").open("w+b")
        environment = {key: value for key, value in os.environ.items() if key[:5] != "FAME_"}
        self.process = subprocess.Popen(
            ["bash", "-e"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            env=environment
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "FAME_LISTENER_PORT": str(self.port),
                "FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT": str(self.http_port),
                "NOTIFY_SOCKET": str(folder / "ready"),
                "XDG_RUNTIME_DIR": str(folder),
            },
        )

    def type(self, commands: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(commands.encode())
        self.process.stdin.flush()
        for _ in re.findall(r"&$", commands, re.MULTILINE):
            try:
                while self.ready.recv(100) != b"READY=1":
                    pass
            except TimeoutError:
                pytest.fail(f"{commands} is not ready:\n{self.read()}")

    def read(self) -> str:
        self.output.seek(0)
        return self.output.read().decode()

    def end(self) -> str:
        """Let the commands finish; return what they printed."""
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.read()
        return self.read()

    def close(self) -> None:
        with suppress(ProcessLookupError):  # a page that failed leaves its nodes running
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ready.close()
        self.output.close()


def typed(page: Path, folder: Path) -> str:
    """What a reader sees who saves the files and types the commands of a page, in order."""
    terminal = Terminal(folder)
    try:
        for block in blocks(page):
            text = block.text.replace(":8000/", f":{terminal.port}/")
            text = text.replace(":8080/", f":{terminal.http_port}/")
            if block.language == "python":
                assert block.file, block
                (folder / block.file).write_text(text)
            elif block.language == "sh":
                terminal.type(text)
        if page.name == "README.md":
            terminal.type("kill %1 %2\n")
        return terminal.end()
    finally:
        terminal.close()


PRINTED = {
    "gateway.md": [
        r'\{"ok":true,"result":"Hello, Ada!"\}',
        'data: "A"',
        'data: "d"',
        "event: end",
        '.*"message_accepted".*',
        '.*"type":"NoRoute".*',
        r'\{"status":"healthy",.*',
        "/fame/v1/jsonrpc",
    ],
    "README.md": [r"\{'value': 'Hello, World!', .*", r"greeting \{'value': 'Hello, World!', .*"],
    "quickstart.md": [
        "1",
        "2",
        r"\['Ada Lovelace', 'Grace Hopper'\]",
        r"\['Ada Lovelace', 'Grace Hopper'\]",
        r"There is nothing to read here\.",
        r'\{"names":\["Ada Lovelace","Grace Hopper"\]\}',
        "ok  .*__agent_guest_book: 1 records .* are sound.*",
    ],
}


@pytest.mark.parametrize("page", TUTORIALS, ids=id_of)
def test_the_files_and_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    lines = iter(typed(page, tmp_path).splitlines())
    for expected in PRINTED[page.name]:
        assert any(re.fullmatch(expected, line) for line in lines), expected


def test_every_other_command_of_a_page_exists() -> None:
    commands = {
        line.split()[1]: id_of(page)
        for page in MANUAL
        for block in blocks(page)
        if block.language in {"sh", "console"}
        for line in block.text.splitlines()
        if re.match(r"(\$ )?strongroom \w+", line)
        for line in [line.removeprefix("$ ")]
    }
    assert len(commands) > 5
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert commands.keys() <= known.keys(), commands


def test_every_target_of_make_that_a_page_names_exists() -> None:
    targets = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {name for line in targets for name in line.split()}
    command = re.compile(r"(?:`|\$ )make (\w[\w-]*)")
    named = {name for page in MANUAL for name in command.findall(page.read_text())}
    assert named
    assert named <= known


# --- facts --------------------------------------------------------------------------------------


def test_the_settings_page_lists_each_variable_once_as_the_code_has_it() -> None:
    page = (DOCS / "settings.md").read_text()
    rows = re.findall(r"^\| `(FAME_\w+)` \| ?(.*?) ?\| (.*) \|$", page, re.MULTILINE)
    expected = [
        (each.name, "" if each.default is None else f"`{str(each.default).lower()}`", each.about)
        for each in variables()
    ]
    assert rows == expected


def test_every_test_that_a_page_names_exists() -> None:
    named = {name for page in MANUAL for name in re.findall(r"`(test_\w+)`", page.read_text())}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 10
    assert named <= set(re.findall(r"def (test_\w+)\(", tests))


@pytest.mark.parametrize("page", PROSE, ids=id_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if not target.startswith("https://"):
            file = page.parent / target if target else page
            assert file.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
                assert heading in {title.lower().replace(" ", "-") for title in titles}, heading


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name
