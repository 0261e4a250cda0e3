"""A user's program and the examples pass mypy and pyright in strict mode, and mistakes do not."""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TYPED = ROOT / "tests" / "typed"
EXAMPLES = sorted(ROOT.glob("examples/*/*.py"))

PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]

Errors = dict[str, dict[int, str]]
"""For each file's name, each line with an error and the last message about it."""


def mypy(folder: Path, *files: str) -> Errors:
    cache = ROOT / ".mypy_cache" / "users"  # kept, since most of it is about other packages
    command = [sys.executable, "-m", "mypy", "--config-file=", "--strict", f"--cache-dir={cache}"]
    done = subprocess.run(
        [*command, *files], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    errors: Errors = defaultdict(dict)
    for name, line, message in re.findall(r"^(\S+?):(\d+): error: (.*)", done.stdout, re.MULTILINE):
        errors[name][int(line)] = message
    return errors


def pyright(folder: Path, *files: str) -> Errors:
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files)
    errors: Errors = defaultdict(dict)
    for found in report["generalDiagnostics"]:
        line = found["range"]["start"]["line"] + 1
        errors[Path(found["file"]).name][line] = found["message"]
    return errors


@pytest.fixture(scope="module", params=[mypy, pyright])
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """What a checker finds in copies that have nothing of ours beside them, as users' files do."""
    folder = tmp_path_factory.mktemp("typed")
    names = sorted(file.name for file in TYPED.glob("*.py"))
    for name in names:
        shutil.copy(TYPED / name, folder)
    found: Errors = request.param(folder, *names)
    return found


def test_a_users_program_is_well_typed(errors: Errors) -> None:
    assert errors["program.py"] == {}


def test_each_mistake_is_found_and_nothing_else(errors: Errors) -> None:
    lines = (TYPED / "mistakes.py").read_text().splitlines()
    wrong = [number for number, line in enumerate(lines, 1) if "# error" in line]
    assert len(wrong) > 5
    assert sorted(errors["mistakes.py"]) == wrong, errors["mistakes.py"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_an_example_is_well_typed(example: Path, tmp_path: Path) -> None:
    shutil.copytree(example.parent, tmp_path / "example")
    assert mypy(tmp_path / "example", example.name) == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_of_a_page_are_well_typed(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 2
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    assert mypy(tmp_path, *(name for name, _ in blocks)) == {}


def test_the_users_program_runs() -> None:
    done = subprocess.run(
        [sys.executable, TYPED / "program.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["done"]), done.stderr
