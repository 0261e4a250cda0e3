"""`strongroom port` renames imports and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.compat.port import port

PORTED = [
    ("from naylence.agent import BaseAgent", "from strongroom import BaseAgent"),
    ("from naylence.fame.core import FameFabric as F", "from strongroom import FameFabric as F"),
    (
        "from naylence.fame.core import FameFabric, generate_id",
        "from strongroom.compat.naylence.fame.core import FameFabric, generate_id",
    ),
    ("from naylence.agent import *", "from strongroom.compat.naylence.agent import *"),
    (
        "from naylence.fame.util import logging",
        "from strongroom.compat.naylence.fame.util import logging",
    ),
    (
        "import naylence.agent as n; n.Agent",
        "import strongroom.compat.naylence.agent as n; n.Agent",
    ),
    (
        "import os, naylence.fame.core\nnaylence.fame.core.generate_id()",
        (
            "import os, strongroom.compat.naylence.fame.core\n"
            "strongroom.compat.naylence.fame.core.generate_id()"
        ),
    ),
    (
        "from  naylence.agent  import (  # these\n    Agent,\n\n    BaseAgent,)  # two\n",
        "from  strongroom  import (  # these\n    Agent,\n\n    BaseAgent,)  # two\n",
    ),
    ("from \\\n  naylence.agent import Agent", "from \\\n  strongroom import Agent"),
    ("'ü'; from naylence.agent import Agent; 'é'", "'ü'; from strongroom import Agent; 'é'"),
    (
        "if x:\r\n\tfrom naylence.agent import Agent\r\n",
        "if x:\r\n\tfrom strongroom import Agent\r\n",
    ),
    ("\x0cfrom naylence.agent import Agent", "\x0cfrom strongroom import Agent"),
    (
        "'''\u2028'''\nfrom naylence.agent import Agent",
        "'''\u2028'''\nfrom strongroom import Agent",
    ),
    ("# from naylence.agent import Agent", "# from naylence.agent import Agent"),
    ("x = 'from naylence.agent import Agent'", "x = 'from naylence.agent import Agent'"),
    ("from .naylence import Agent", "from .naylence import Agent"),
    ("from naylencex.agent import Agent", "from naylencex.agent import Agent"),
    ("naylence = 1; naylence.agent", "naylence = 1; naylence.agent"),
    ("", ""),
]


@pytest.mark.parametrize(("before", "after"), PORTED)
def test_imports_are_renamed(before: str, after: str) -> None:
    assert port(before) == (after, [])
    assert port(after) == (after, [])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("from naylence.fame.security import X", "naylence.fame.security has no counterpart here"),
        ("from naylence.agent import Agent, Nonsense", "naylence.agent has no Nonsense here"),
        ("import naylence.nothing", "naylence.nothing has no counterpart here"),
        ("from naylence . agent import Nonsense", "naylence.agent is written in a way"),
    ],
)
def test_what_has_no_counterpart_is_named_and_left(text: str, what: str) -> None:
    after, [problem] = port(f"\n{text}\nfrom naylence.agent import Agent")
    assert after == f"\n{text}\nfrom strongroom import Agent"
    assert problem.line == 2
    assert problem.what.startswith(what)


def run(*arguments: object, status: int = 0) -> str:
    command = [sys.executable, "-m", "strongroom", "port", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "agent.py": b"from naylence.agent import BaseAgent\r\n",
        "inner/latin.py": b"# coding: latin-1\nx = '\xe9'; from naylence.agent import Agent\n",
        "inner/marked.py": b"\xef\xbb\xbffrom naylence.agent import Agent\n",
        "notes.txt": b"from naylence.agent import BaseAgent\n",
        ".venv/agent.py": b"from naylence.agent import BaseAgent\n",
        "environment/pyvenv.cfg": b"",
        "environment/agent.py": b"from naylence.agent import BaseAgent\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "agent.py").chmod(0o755)
    return tmp_path


def contents(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


def test_a_tree_is_shown_and_then_changed(tree: Path) -> None:
    before = contents(tree)
    shown = run(tree)
    assert contents(tree) == before
    assert shown.count("+from strongroom import") == 2
    assert "agent.py" in shown
    run(tree, "--write")
    after = contents(tree)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"agent.py", "inner/latin.py", "inner/marked.py"}
    for name in changed:
        assert after[name] == before[name].replace(b"naylence.agent", b"strongroom")
    assert (tree / "agent.py").stat().st_mode & 0o777 == 0o755
    assert run(tree, "--write") == ""


def test_what_cannot_be_ported_is_an_error_after_the_rest(tree: Path) -> None:
    (tree / "broken.py").write_text("def")
    (tree / "other.py").write_text("import naylence.fame.security\n")
    said = run(tree, "--write", status=1)
    assert "broken.py: not Python" in said
    assert "other.py:1: naylence.fame.security has no counterpart here" in said
    assert "2 places could not be ported" in said
    assert b"strongroom" in (tree / "agent.py").read_bytes()
    assert "does not exist" in run(tree / "nowhere", status=2)
    assert "not a *.py file" in run(tree / "notes.txt", status=2)
