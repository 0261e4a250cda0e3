"""Each small example does what its README says."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

from support.fabrics import eventually
from support.processes import Program, attach_url, environment, free_port, running

EXAMPLES = Path(__file__).parents[1] / "examples"
GALLERY = sorted(
    path.parent.name for path in EXAMPLES.glob("*/client.py") if "-" not in str(path.parent.name)
)


@pytest.mark.parametrize("name", GALLERY)
async def test_an_example_prints_what_its_page_says(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / name, tmp_path / name)
    page = (folder / "README.md").read_text()
    blocks = dict(re.findall(r"^```(sh|text)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    first, second = blocks["sh"].splitlines()
    *given, python, server, background = first.split()
    assert (python, background, second) == ("python", "&", "python client.py")
    port = free_port()
    variables = dict(each.split("=") for each in given) | {"FAME_LISTENER_PORT": port}
    if "FAME_STORAGE_DB_DIRECTORY" in variables:
        variables["FAME_STORAGE_DB_DIRECTORY"] = folder / "data"
    program = Program(str(folder / server), tmp_path)
    async with running(program):
        if "aserve" in (folder / server).read_text():
            await program.start_and_wait(**variables)
        else:
            await program.start(**variables)
            await eventually(lambda: "ready" in program.log.read_text())
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "client.py",
            cwd=folder,
            env=environment(FAME_DIRECT_ADMISSION_URL=attach_url(port)),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await client.communicate()
        assert said.decode() == blocks["text"]
