"""Our storage profiles, for tests that run on each of them."""

from __future__ import annotations

from pathlib import Path

from strongroom import StorageSettings

PROFILES = ["memory", "sqlite", "encrypted-sqlite"]


def settings(profile: str, directory: Path) -> StorageSettings:
    key = "11" * 32 if profile == "encrypted-sqlite" else None
    return StorageSettings(profile=profile, directory=directory / "data", master_key=key)
