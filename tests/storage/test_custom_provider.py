"""The provider of examples/custom-provider keeps the contract, and a node runs on it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from strongroom.errors import DirectoryInUse, StoreDamaged, StoreUnavailable
from strongroom.settings import StorageSettings
from strongroom.storage import Write
from strongroom.testing import CASES, SLOW_CASES, conformance_tests

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom-provider"
sys.path.insert(0, str(EXAMPLE))

from jsonl_provider import JsonLinesProvider  # noqa: E402

test_json_lines = conformance_tests(JsonLinesProvider, cases=CASES)
test_json_lines_slow = pytest.mark.slow(conformance_tests(JsonLinesProvider, cases=SLOW_CASES))


async def _provider(directory: Path) -> JsonLinesProvider:
    provider = JsonLinesProvider(StorageSettings(directory=directory))
    await provider.start()
    return provider


async def test_a_line_cut_short_by_a_crash_is_dropped_and_others_are_damage(tmp_path: Path) -> None:
    provider = await _provider(tmp_path)
    await (await provider.open("notes")).apply([Write("a", b"1")])
    await provider.close()
    file = tmp_path / "notes.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-5])
    provider = await _provider(tmp_path)
    store = await provider.open("notes")
    assert await store.count() == 1
    await store.apply([Write("b", b"2")])
    await provider.close()
    file.write_bytes(b"{" + file.read_bytes())
    provider = await _provider(tmp_path)
    with pytest.raises(StoreDamaged, match="line 1"):
        await provider.open("notes")
    await provider.close()


async def test_one_process_owns_the_directory(tmp_path: Path) -> None:
    provider = await _provider(tmp_path)
    with pytest.raises(DirectoryInUse):
        await _provider(tmp_path)
    await provider.close()


async def test_after_a_failed_write_nothing_more_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await _provider(tmp_path)
    store = await provider.open("notes")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnavailable, match="No space left"):
            await store.apply([Write("a", b"1")])
    store = await provider.open("notes")
    await store.apply([Write("b", b"2")])
    await provider.close()


@pytest.mark.parametrize("profile", ["jsonl_provider:JsonLinesProvider", "jsonl"])
def test_a_node_keeps_everything_in_it(tmp_path: Path, profile: str) -> None:
    if profile == "jsonl":
        _install(tmp_path)
    environment = {
        **os.environ,
        "FAME_STORAGE_PROFILE": profile,
        "FAME_STORAGE_DB_DIRECTORY": str(tmp_path / "data"),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{EXAMPLE}",
    }
    lines = []
    for _ in range(2):
        command = [sys.executable, "visits.py"]
        run = subprocess.run(
            command, cwd=EXAMPLE, env=environment, capture_output=True, text=True, check=True
        )
        lines.append(run.stdout.splitlines())
    (first, names), (second, _) = lines
    assert first.startswith("Visit 1 of node ")
    assert second == first.replace("Visit 1", "Visit 2")  # the same node, by its housekeeping
    assert first.endswith("kept by JsonLinesProvider:")
    assert names == "__binding_store __node_meta visits"


def _install(directory: Path) -> None:
    """Leave what `pip install` leaves of the example's entry points, without the network."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = directory / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
