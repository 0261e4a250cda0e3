"""The package as users get it: built, described, and installed without the checkout."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from support.processes import environment

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/strongroom/strongroom"
PROGRAM = """
import asyncio
from pydantic import BaseModel
from strongroom import BaseAgent, FameFabric, Sentinel, Settings, operation

class Note(BaseModel):
    text: str

class Notes(BaseAgent):
    async def start(self) -> None:
        self.notes = await self.storage_provider.get_kv_store(Note, "notes")

    @operation
    async def add(self, key: str, text: str) -> int:
        await self.notes.set(key, Note(text=text))
        return len(await self.notes.list())

async def main() -> None:
    async with Sentinel(Settings(listener_port=0)) as sentinel:
        url = f"ws://127.0.0.1:{sentinel.port}/fame/v1/attach/ws/downstream"
        async with FameFabric(Settings(admission_url=url)) as node:
            await node.serve(Notes(), "notes@fame.fabric")
            print(await Notes.remote("notes@fame.fabric").add("a", "Hello"))

asyncio.run(main())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    built = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", built, ROOT)
    return built


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """The bin directory of a new environment that has the wheel and its dependencies only."""
    home = built / "venv"
    run(sys.executable, "-m", "venv", home)
    run(home / "bin/pip", "install", "-q", "-c", ROOT / "constraints.txt", *built.glob("*.whl"))
    return home / "bin"


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_types_and_the_sdist_what_the_tests_need(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert "strongroom/py.typed" in names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"strongroom"}
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"Makefile", "constraints.txt", "scripts/demo.py", "tests/support/notes.py"}
    assert needed <= held
    assert not [name for name in held if ".env" in name or "/data/agent" in name]


def metadata(built: Path) -> Message:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def test_every_link_on_the_package_s_page_leads_out_of_it(built: Path) -> None:
    page = str(metadata(built).get_payload())
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert f"{REPOSITORY}/blob/main/docs/quickstart.md" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link.partition("/blob/main/")[2] for link in links if link.startswith(REPOSITORY)]
    assert [path for path in own if not (ROOT / path).exists()] == []


def test_the_package_says_where_it_comes_from(built: Path) -> None:
    urls = dict(url.split(", ") for url in metadata(built).get_all("Project-URL", []))
    assert urls.keys() >= {"Homepage", "Source", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(REPOSITORY) for url in urls.values())
    for name in ("Documentation", "Changelog"):
        assert (ROOT / urls[name].split("/main/")[1]).exists()


def test_a_program_runs_on_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    assert run(installed / "python", "program.py", cwd=tmp_path) == "1\n"
    where = run(installed / "python", "-c", "import strongroom; print(strongroom.__file__)")
    assert Path(where).is_relative_to(installed.parent)


def test_the_command_line_runs_on_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    version = run(installed / "strongroom", "--version", cwd=tmp_path)
    assert "sentinel" in run(installed / "strongroom", "--help", cwd=tmp_path)
    assert run(installed / "python", "-m", "strongroom", "--version", cwd=tmp_path) == version


def test_ci_installs_what_constraints_pin_by_its_hashes() -> None:
    assert "--require-hashes -r constraints-hashes.txt" in (ROOT / ".ci/run").read_text()
    text = (ROOT / "constraints-hashes.txt").read_text()
    hashed = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)(?: ;.*?)? \\\n    --hash=sha256:", text, re.MULTILINE)
    )
    assert len(hashed) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    constraints = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    assert hashed.items() >= dict(line.split("==") for line in constraints.split()).items()
    assert "://" not in text
