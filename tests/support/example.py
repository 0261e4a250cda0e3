"""Runs examples/encrypted-storage in another directory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import free_port

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


class Example:
    """A run of the example in its own directory, on its own port."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()

    def make(self, command: str, *, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, DEMO, command, f"--port={self.port}", f"--home={self.home}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def total(self) -> int:
        found = re.search(r"^Total stored values: (\d+)$", self.make("run"), re.MULTILINE)
        assert found
        return int(found[1])

    def pid(self, name: str) -> int:
        return int((self.home / ".run" / f"{name}.pid").read_text())


@contextmanager
def running_example(home: Path) -> Iterator[Example]:
    """An example that is stopped and cleaned at the end."""
    example = Example(home)
    try:
        yield example
    finally:
        example.make("clean")
    assert not list(home.rglob("*.db"))
