"""The container files, as far as they can be checked without a container engine."""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from support.example import Example, running_example

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "encrypted-storage"
SERVICES: dict[str, Any] = yaml.safe_load((EXAMPLE / "docker-compose.yml").read_text())["services"]


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    with running_example(tmp_path) as example:
        yield example


def test_only_this_machine_reaches_the_sentinel() -> None:
    published = {name: service.get("ports") for name, service in SERVICES.items()}
    assert published == {"sentinel": ["127.0.0.1:8000:8000"], "agent": None, "client": None}


def test_each_node_has_its_part_of_data_and_its_variables(example: Example) -> None:
    example.make("init")
    for name in ("sentinel", "agent"):
        source, target = SERVICES[name]["volumes"][0].split(":")
        assert len(SERVICES[name]["volumes"]) == 1
        assert stat.S_IMODE((example.home / source).stat().st_mode) == 0o700
        variables = (example.home / SERVICES[name]["env_file"]).read_text()
        directory = PurePosixPath(target).relative_to("/app")  # where the programs run
        assert f"FAME_STORAGE_DB_DIRECTORY={directory}\n" in variables
    assert "MASTER_KEY" not in (example.home / SERVICES["client"]["env_file"]).read_text()
    assert "volumes" not in SERVICES["client"]


def test_each_service_runs_a_program_that_the_image_holds() -> None:
    assert re.search(r"^COPY examples/encrypted-storage/\*\.py \./$", _dockerfile(), re.MULTILINE)
    for service in SERVICES.values():
        python, program = service["command"]
        assert python == "python"
        assert (EXAMPLE / program).exists()


def test_a_node_is_healthy_only_while_it_answers(example: Example) -> None:
    waits = {name: service.get("depends_on") for name, service in SERVICES.items()}
    assert waits["agent"] == {"sentinel": {"condition": "service_healthy"}}
    assert waits["client"] == {"agent": {"condition": "service_healthy"}}
    example.make("start")
    assert _is_healthy("sentinel", example)
    assert _is_healthy("agent", example)
    os.kill(example.pid("agent"), signal.SIGTERM)
    while "agent: does not run" not in example.make("status"):
        pass
    assert _is_healthy("sentinel", example)
    assert not _is_healthy("agent", example)
    example.make("stop")
    assert not _is_healthy("sentinel", example)


def test_no_secret_gets_into_the_build() -> None:
    example = "examples/encrypted-storage"
    for secret in (
        ".env",
        f"{example}/.env",
        f"{example}/config/.env.agent",
        f"{example}/config/before-2026-01-01/.env.agent",
        f"{example}/data/agent/__keystore_encrypted_value.db",
        f"{example}/.run/agent.log",
        "master.key",
    ):
        assert not _is_in_build_context(secret)


def test_everything_that_the_image_copies_gets_into_the_build() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", _dockerfile(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert "src" in names
    for name in names:
        found = list(ROOT.glob(name))
        assert found
        assert all(_is_in_build_context(str(path.relative_to(ROOT))) for path in found)


def test_the_image_installs_the_tested_versions_by_their_hashes() -> None:
    assert "--require-hashes -r image-requirements.txt" in _dockerfile()
    text = (EXAMPLE / "image-requirements.txt").read_text()
    pinned = re.findall(
        r"^([a-z0-9-]+)==(\S+)(?: ;.*?)? \\\n    --hash=sha256:", text, re.MULTILINE
    )
    assert len(pinned) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    constraints = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    tested = dict(line.split("==") for line in constraints.split())
    assert all(tested.get(name, version) == version for name, version in pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {line.split()[0] for line in project["dependencies"]}
    assert needed <= dict(pinned).keys()
    assert {"uvloop", "hatchling"} <= dict(pinned).keys()


def _dockerfile() -> str:
    return (EXAMPLE / "Dockerfile").read_text()


def _is_healthy(name: str, example: Example) -> bool:
    """Run a service's health check on this machine, where the sentinel has another port."""
    port = example.port
    lines = (example.home / f"config/.env.{name}").read_text().splitlines()
    from_file = dict(line.split("=", 1) for line in lines)
    kind, program, *arguments = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    url = SERVICES[name]["environment"].get("FAME_DIRECT_ADMISSION_URL", "")
    return not subprocess.run(
        [
            Path(sys.executable).with_name(program),
            *(argument.replace(":8000/", f":{port}/") for argument in arguments),
        ],
        env=os.environ
        | from_file
        | {"FAME_DIRECT_ADMISSION_URL": url.replace("//sentinel:8000", f"//127.0.0.1:{port}")},
        capture_output=True,
        timeout=30,
        check=False,
    ).returncode


def _is_in_build_context(name: str) -> bool:
    """Whether .dockerignore lets a file in: the last matching line decides, as Docker has it."""
    parents = [*reversed(PurePosixPath(name).parents), PurePosixPath(name)]
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if (
            line
            and not line.startswith("#")
            and any(
                fnmatch.fnmatchcase(path.name if "**" in line else str(path), pattern)
                for path in parents
            )
        ):
            included = line.startswith("!")
    return included
