"""The reference has every command, option and error, and its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from strongroom import errors
from strongroom.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, by its full name."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None) or {"": command}
        yield from ((f"strongroom {name} {part}".strip(), found) for part, found in inner.items())


def family(error: type[Exception]) -> Iterator[type[Any]]:
    yield error
    for kind in error.__subclasses__():
        if vars(errors).get(kind.__name__) is kind:
            yield from family(kind)


def test_every_command_and_option_is_in_the_reference() -> None:
    reference = (DOCS / "cli.md").read_text()
    for name, command in commands():
        assert f"`{name}" in reference, name
        for option in (o for parameter in command.params for o in parameter.opts):
            if option.startswith("--") and option != "--help":
                assert re.search(rf"{option}\b", reference), f"{name} {option}"


def test_every_error_is_in_the_table_with_its_exit_code() -> None:
    table = (DOCS / "errors.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", table, re.MULTILINE))
    codes = {kind.__name__: str(kind.exit_code) for kind in family(errors.StrongroomError)}
    assert rows == codes


def test_narrow_errors_have_exit_codes_of_their_own() -> None:
    own = [kind for kind in family(errors.StrongroomError) if "exit_code" in vars(kind)]
    assert len({kind.exit_code for kind in own}) == len(own)
    assert not {2, 70, 130} & {kind.exit_code for kind in own}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["keys.md", pytest.param("after-a-leak.md", marks=pytest.mark.slow)]
)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    script = """set -e
strongroom key new --out first.key
[ $PAGE = keys.md ] || cp first.key master.key
prepare() {
    export FAME_STORAGE_PROFILE=encrypted-sqlite
    python - <<'END'
import asyncio
from strongroom.settings import StorageSettings
from strongroom.storage import open_provider, Write
from pathlib import Path
async def make():
    provider = await open_provider(StorageSettings(
        profile="encrypted-sqlite", directory=Path("data"), master_key_file=Path("master.key")))
    await (await provider.open("notes")).apply([Write("a", b"a")])
    await provider.close()
asyncio.run(make())
END
}
"""
    for number, block in enumerate(blocks):
        if number == (1 if page == "keys.md" else 0):
            script += "prepare\n"
        script += block
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PAGE": page,
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
