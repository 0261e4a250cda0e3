"""Makes the agent that `strongroom agent` runs, and reports why it cannot be loaded."""

from __future__ import annotations

import difflib
import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from strongroom.agents.agent import BaseAgent
from strongroom.cli.output import UsageError
from strongroom.errors import StrongroomError


def load_agent(which: str) -> BaseAgent[Any]:
    """An agent of the class `module:Class`, with modules of the current directory first.

    Raises:
        UsageError: It cannot be imported, is not a subclass of BaseAgent, or needs arguments.
    """
    module_name, _, name = which.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        where = _where(error)
        reason = error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"
        modules = [path.stem for path in Path.cwd().glob("*.py")]
        near = difflib.get_close_matches(module_name, modules, n=1)
        remedy = f"{near[0]}:{name}" if near else "my_module:MyAgent, where my_module.py is"
        raise UsageError(
            f"{module_name} cannot be imported: {where}{reason}.",
            remedy="correct that line" if where else remedy,
            hint="MODULE:CLASS",
        ) from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, BaseAgent):
        return _made(found, which)
    agents = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseAgent) and value is not BaseAgent
    ]
    near = difflib.get_close_matches(name, agents) or agents
    what = "does not exist" if found is None else "is not a subclass of BaseAgent"
    raise UsageError(
        f"{which} {what}.",
        remedy=" or ".join(f"{module_name}:{key}" for key in near) or "my_module:MyAgent",
        hint="MODULE:CLASS",
    )


def _made(found: type[BaseAgent[Any]], which: str) -> BaseAgent[Any]:
    try:
        return found()
    except StrongroomError:
        raise
    except Exception as error:
        raise UsageError(
            f"{which} cannot be made: {_where(error)}{type(error).__name__}: {error}.",
            remedy="a class whose constructor needs no argument and raises no error",
            hint="MODULE:CLASS",
        ) from error


def _where(error: Exception) -> str:
    """The file and line of the user's own code at which an import failed, if it got so far."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    libraries = tuple(sysconfig.get_paths().values())
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is in this file
    own = [frame for frame in frames if not frame.filename.startswith(("<", *libraries))]
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
