"""The providers that every test of storage runs on."""

import pytest

from strongroom.storage import MemoryProvider
from strongroom.testing.trial import Make

PROVIDERS: dict[str, Make] = {
    "memory": MemoryProvider,
}


@pytest.fixture(params=PROVIDERS, scope="session")
def make_provider(request: pytest.FixtureRequest) -> Make:
    """Takes settings and a clock, and gives a provider."""
    return PROVIDERS[request.param]
