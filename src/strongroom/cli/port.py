"""`strongroom port`: a tree of programs for Naylence, with their imports renamed."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.output import UsageError
from strongroom.compat.port import port
from strongroom.errors import StrongroomError
from strongroom.printable import printable

SKIPPED = {"__pycache__", "build", "dist", "node_modules", "site-packages"}


def port_(
    path: Annotated[Path, typer.Argument(help="A file, or a directory with all below it.")],
    write: Annotated[bool, typer.Option("--write", help="Change the files.")] = False,
) -> None:
    """Rename the imports of programs for Naylence, so that they run on Strongroom.

    Shows what would change, and what cannot be renamed. Changes files only with --write, and only
    names of modules in them. Looks at *.py, but not in hidden directories and environments.

    \b
    strongroom port my_agents
    strongroom port my_agents --write
    """
    if not path.is_dir() and not (path.is_file() and path.suffix == ".py"):
        what = "is not a *.py file or a directory" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}.", remedy="a program or a directory", hint="PATH")
    left = 0
    for file in _programs(path):
        try:
            left += _port(file, write=write)
        except (SyntaxError, UnicodeDecodeError, ValueError) as error:
            print(printable(f"{file}: not Python: {error}"))
            left += 1
    if left:
        places = "1 place" if left == 1 else f"{left} places"
        raise StrongroomError(
            f"{places} could not be ported.", remedy="change what is named above by hand"
        )


def _programs(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for directory, inner, files in os.walk(path):
        inner[:] = sorted(each for each in inner if not _is_skipped(Path(directory, each)))
        for name in sorted(files):
            file = Path(directory, name)
            if file.suffix == ".py" and not file.is_symlink():
                yield file


def _is_skipped(directory: Path) -> bool:
    is_environment = (directory / "pyvenv.cfg").exists()
    return directory.name.startswith(".") or directory.name in SKIPPED or is_environment


def _port(file: Path, *, write: bool) -> int:
    with tokenize.open(file) as opened:
        encoding = opened.encoding
    with file.open(encoding=encoding, newline="") as exact:
        before = exact.read()
    after, problems = port(before)
    if after != before:
        if write:
            _replace(file, after.encode(encoding))
            print(printable(f"{file}: changed"))
        else:
            _show(file, before, after)
    for problem in problems:
        print(printable(f"{file}:{problem.line}: {problem.what}"))
    return len(problems)


def _show(file: Path, before: str, after: str) -> None:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(file), str(file), n=0, lineterm=""
    )
    for line in lines:
        print(printable(line))


def _replace(file: Path, content: bytes) -> None:
    """Change a file in one step, so that it is never half written."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as new:
            new.write(content)
        shutil.copymode(file, name)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink()
        raise
