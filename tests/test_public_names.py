"""What is public is the same in the code, in the documentation and in CONTRIBUTING."""

import importlib
import pickle
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import strongroom

ROOT = Path(__file__).parent.parent
PUBLIC = ["strongroom"] + [
    f"strongroom.{name}"
    for name in (
        "compat.naylence",
        "errors",
        "gateway",
        "gateway.agent_router",
        "settings",
        "storage",
        "storage.sealed",
        "testing",
    )
]
NAMES = [name for name in strongroom.__all__ if name != "__version__"]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/*.md")]


ADAPTERS = {
    f"strongroom.integrations.{name}"
    for name in ("langchain", "langgraph", "openai_agents", "py_key_value", "pydantic_ai")
}
"""Public too, but only to be imported where their frameworks are: tests/integrations does it."""


def documented_imports() -> set[tuple[str, str]]:
    """Each module and name that a page or an example imports from us."""
    programs = [file for file in ROOT.glob("examples/*/*.py") if file.name != "launch.py"]
    texts = [page.read_text() for page in (*PAGES, *programs)]
    found = set()
    for module, several, one in re.findall(
        r"^from (strongroom[\w.]*) import (?:\(([^)]*)\)|(.*))$", "\n".join(texts), re.MULTILINE
    ):
        names = re.sub(r"#.*", "", several or one)
        found |= {(module, name.strip()) for name in names.split(",") if name.strip()}
    return found


def test_contributing_says_which_modules_are_public() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## What is public")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"`(strongroom[\w.]*)`", section)) == sorted({*PUBLIC, *ADAPTERS})


def test_the_documentation_imports_public_names_from_public_modules() -> None:
    assert len(documented_imports()) > 20
    for module, name in documented_imports():
        if module in ADAPTERS:
            continue
        assert module in PUBLIC, (module, name)
        assert hasattr(importlib.import_module(module), name), (module, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_from_the_root_and_survives_pickling(name: str) -> None:
    value = getattr(strongroom, name)
    assert value.__module__ == "strongroom"
    assert pickle.loads(pickle.dumps(value)) is value
    if isinstance(value, type):
        typing.get_type_hints(value)  # its annotations can still be read


def test_dir_and_the_stars_of_all_agree() -> None:
    assert sorted(strongroom.__all__) == strongroom.__all__
    assert set(strongroom.__all__) <= set(dir(strongroom))
    names: dict[str, object] = {}
    exec("from strongroom import *", names)
    assert set(strongroom.__all__) <= names.keys()


def test_every_error_that_agents_md_names_is_at_hand() -> None:
    table = (ROOT / "docs/agents.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert "CallInterrupted" in named
    errors = importlib.import_module("strongroom.errors")
    for name in named:
        assert hasattr(errors, name), name
        assert issubclass(getattr(errors, name), strongroom.StrongroomError)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="Agnet"):
        strongroom.Agnet  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        exec("from strongroom import Agnet")


def test_importing_strongroom_loads_no_more_than_it_needs() -> None:
    script = "import strongroom, sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    ours = [name for name in loaded if name.startswith("strongroom")]
    assert ours == [
        "strongroom",
        "strongroom.errors",
        "strongroom.settings",
        "strongroom.version",
    ]
    assert not {"pydantic", "msgspec", "picows", "apsw", "cryptography", "asyncio"} & set(loaded)


def test_agents_and_sentinels_load_nothing_of_tasks_and_other_runtimes() -> None:
    script = (
        "import strongroom, sys; strongroom.BaseAgent, strongroom.Sentinel; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    unused = ("a2a", "compat", "task_calls", "task_log", "yaml")
    ours = [name for name in done.stdout.split() if name.startswith(("strongroom", "yaml"))]
    assert "strongroom.agents.agent" in ours
    assert [name for name in ours if name.rpartition(".")[2] in unused] == []
