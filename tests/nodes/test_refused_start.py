"""A node that cannot use its directory ends at once, with one line and a status, unchanged."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom import errors
from strongroom.errors import StrongroomError
from support.files import fingerprint

KEY = "00112233445566778899aabbccddeeff" * 2
SENTINEL = "import asyncio, strongroom; asyncio.run(strongroom.Sentinel().aserve())"
KEYSTORE, META = "__keystore_encrypted_value.db", "__node_meta_encrypted_value.db"
ROUTES, BINDINGS = "__route_store_encrypted_value.db", "__binding_store_encrypted_value.db"


def environment(directory: Path, **changes: str) -> dict[str, str]:
    settings = {
        "FAME_STORAGE_PROFILE": "encrypted-sqlite",
        "FAME_STORAGE_MASTER_KEY": KEY,
        "FAME_STORAGE_DB_DIRECTORY": str(directory),
        "FAME_LISTENER_PORT": "0",
    }
    return {**os.environ, **settings, **changes}


def start(directory: Path, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SENTINEL],
        env=environment(directory, **changes),
        stderr=subprocess.PIPE,
        text=True,
    )


def run_once(directory: Path, **changes: str) -> None:
    """Bring a sentinel up, and stop it when its files are there."""
    with start(directory, **changes) as node:
        assert node.stderr is not None
        suffix = ".db" if changes else "_encrypted_value.db"
        while not (directory / f"__route_store{suffix}").exists():
            assert node.poll() is None, node.stderr.read()
        node.send_signal(signal.SIGTERM)
        said = node.stderr.read()
    assert node.returncode == 0, said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directories with the same master key, and a plain one."""
    home = tmp_path_factory.mktemp("made")
    run_once(home / "data")
    run_once(home / "other")
    run_once(home / "plain", FAME_STORAGE_PROFILE="sqlite", FAME_STORAGE_MASTER_KEY="")
    return home


def write(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path, Path], object]:
    def change(directory: Path, _made: Path) -> None:
        path = directory / name
        path.write_bytes(content(path.read_bytes()))

    return change


def remove(name: str) -> Callable[[Path, Path], object]:
    return lambda directory, _made: (directory / name).unlink()


def take(name: str, source: str) -> Callable[[Path, Path], object]:
    return lambda directory, made: shutil.copy(made / source, directory / name)


def take_all(source: str) -> Callable[[Path, Path], object]:
    def change(directory: Path, made: Path) -> None:
        shutil.rmtree(directory)
        shutil.copytree(made / source, directory)

    return change


def nothing(_directory: Path, _made: Path) -> None:
    """The directory is as it should be; the settings are not."""


def flip(offset: int) -> Callable[[bytes], bytes]:
    return lambda old: old[:offset] + bytes([old[offset] ^ 0x5A]) + old[offset + 1 :]


CASES: dict[str, tuple[Callable[[Path, Path], object], dict[str, str], type[StrongroomError]]] = {
    "another master key": (nothing, {"FAME_STORAGE_MASTER_KEY": KEY[::-1]}, errors.WrongMasterKey),
    "no master key": (nothing, {"FAME_STORAGE_MASTER_KEY": ""}, errors.MasterKeyMissing),
    "a short master key": (
        nothing,
        {"FAME_STORAGE_MASTER_KEY": "short"},
        errors.MasterKeyInvalid,
    ),
    "no directory": (nothing, {"FAME_STORAGE_DB_DIRECTORY": ""}, errors.SettingsError),
    "an unknown profile": (nothing, {"FAME_STORAGE_PROFILE": "sqlit"}, errors.UnknownProfile),
    "the plain profile": (nothing, {"FAME_STORAGE_PROFILE": "sqlite"}, errors.ProfileMismatch),
    "a plain directory": (
        take_all("plain"),
        {},
        errors.ProfileMismatch,
    ),
    "a plain store": (take(META, "plain/__node_meta.db"), {}, errors.StoreNotEncrypted),
    "a plain keystore": (take(KEYSTORE, "plain/__keystore.db"), {}, errors.StoreNotEncrypted),
    "no keystore": (remove(KEYSTORE), {}, errors.KeystoreMissing),
    "no store": (remove(ROUTES), {}, errors.StoreMissing),
    "an empty store": (write(ROUTES, lambda old: b""), {}, errors.StoreDamaged),
    "a truncated store": (write(ROUTES, lambda old: old[:4000]), {}, errors.StoreDamaged),
    "a damaged header": (write(ROUTES, flip(3)), {}, errors.StoreDamaged),
    "a damaged first page": (write(META, flip(100)), {}, errors.StoreDamaged),
    "a damaged keystore": (write(KEYSTORE, flip(5000)), {}, errors.StoreDamaged),
    "another node's store": (take(ROUTES, f"other/{ROUTES}"), {}, errors.ForeignStore),
    "another namespace's store": (take(ROUTES, f"data/{BINDINGS}"), {}, errors.StoreSwapped),
}


@pytest.mark.parametrize("case", CASES)
def test_a_node_that_cannot_use_its_directory_says_why_and_changes_nothing(
    made: Path, tmp_path: Path, case: str
) -> None:
    change, settings, error = CASES[case]
    directory = Path(shutil.copytree(made / "data", tmp_path / "data"))
    change(directory, made)
    before = fingerprint(directory)
    with start(directory, **settings) as node:
        _, said = node.communicate(timeout=20)
    assert node.returncode == error.exit_code, said
    [line] = [line for line in said.splitlines() if " WARNING " not in line]
    assert re.match(r"strongroom: error: .*Try: ", line)
    assert fingerprint(directory) == before


@pytest.mark.slow  # it waits for the other node
def test_a_directory_that_another_node_uses_is_refused(made: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(made / "data", tmp_path / "data"))
    with start(directory) as owner:
        while not (directory / f"{ROUTES}-wal").exists():
            assert owner.poll() is None
        with start(directory) as second:
            _, said = second.communicate(timeout=20)
        assert second.returncode == errors.DirectoryInUse.exit_code, said
        assert str(directory) in said
        owner.terminate()
        owner.communicate()
        assert owner.returncode == 0
