"""Every test runs on each of our providers, with the real frameworks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from strongroom import StorageProvider, open_provider
from support.profiles import PROFILES, settings


@pytest.fixture(params=PROFILES)
async def provider(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[StorageProvider]:
    provider = await open_provider(settings(request.param, tmp_path))
    yield provider
    await provider.close()
