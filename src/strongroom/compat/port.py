"""Renames a program's imports of Naylence, and leaves every other byte as it is."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import strongroom

COMPAT = "strongroom.compat."

_FROM = re.compile(r"from(?:\s|\\\r?\n)+(?P<name>naylence[\w.]*)")
_NAME = re.compile(r"(?P<name>naylence[\w.]*)")
_USE = re.compile(r"(?P<name>naylence)\b")


class Problem(NamedTuple):
    """An import that was left as it is, and why."""

    line: int
    what: str


def port(text: str) -> tuple[str, list[Problem]]:
    """A program with its imports of Naylence renamed, and those that cannot be.

    >>> port("from naylence.agent import BaseAgent  # mine")[0]
    'from strongroom import BaseAgent  # mine'

    Raises:
        SyntaxError: The text is not Python.
    """
    edits = _Edits(text)
    nodes = list(ast.walk(ast.parse(text)))
    has_root = False
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            edits.rename(node, _FROM, node.module or "", [each.name for each in node.names])
        elif isinstance(node, ast.Import):
            for each in node.names:
                is_renamed = edits.rename(each, _NAME, each.name, [])
                has_root = has_root or (is_renamed and each.asname is None)
    for node in nodes:
        if has_root and isinstance(node, ast.Name):
            edits.rename(node, _USE, node.id, [])
    return edits.text(), sorted(edits.problems)


class _Edits:
    """The names to be replaced in a text.

    The parser counts columns in bytes of UTF-8.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = [0, *(found.end() for found in re.finditer(r"\r\n|\r|\n", text))]
        self._changes: list[tuple[int, int, str]] = []
        self.problems: list[Problem] = []

    def rename(
        self,
        node: ast.alias | ast.stmt | ast.expr,
        pattern: re.Pattern[str],
        module: str,
        names: list[str],
    ) -> bool:
        """Replace the name of a module, from which `names` are imported, if it is Naylence's."""
        if module.split(".", maxsplit=1)[0] != "naylence":
            return False
        found = pattern.match(self._text, self._offset(node.lineno, node.col_offset))
        if found is None or found["name"] != module:
            what = f"{module} is written in a way that is not understood"
        else:
            new, what = _counterpart(module, names)
            if not what:
                self._changes.append((found.start("name"), found.end("name"), new))
                return True
        self.problems.append(Problem(node.lineno, what))
        return False

    def text(self) -> str:
        """The text with all names replaced."""
        text = self._text
        for start, end, name in sorted(self._changes, reverse=True):
            text = text[:start] + name + text[end:]
        return text

    def _offset(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        before = self._text[start : start + column].encode()[:column]
        return start + len(before.decode())


def _counterpart(module: str, names: list[str]) -> tuple[str, str]:
    """The module to import `names` from instead, or what is missing."""
    if names and all(name in strongroom.__all__ for name in names):
        return "strongroom", ""
    new = COMPAT + module
    if not _exists(new):
        return "", f"{module} has no counterpart here"
    missing = [
        name
        for name in names
        if name != "*" and not hasattr(import_module(new), name) and not _exists(f"{new}.{name}")
    ]
    return new, f"{module} has no {' and no '.join(missing)} here" if missing else ""


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor does its parent
        return False
