"""docs/one-call.md names functions that exist, in the files that it names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/one-call.md").read_text()
SOURCE = ROOT / "src/strongroom"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)` `([\w.]+)`", PAGE)))


def defined_in(path: Path) -> set[str]:
    """Names of the functions of a module, and of the methods of its classes, as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            members = (ast.FunctionDef, ast.AsyncFunctionDef)
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, members)}
    return names


def test_the_page_names_each_step() -> None:
    steps = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 20


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_each_function_of_the_walk_is_in_the_file_that_the_page_names(
    file: str, function: str
) -> None:
    assert function in defined_in(SOURCE / file)


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`([\w/]+\.py)`", PAGE))))
def test_each_file_of_the_walk_exists(file: str) -> None:
    assert (SOURCE / file).is_file()
