import pytest
from providers import PROVIDERS

from strongroom.testing.trial import Make


@pytest.fixture(params=PROVIDERS, scope="session")
def make_provider(request: pytest.FixtureRequest) -> Make:
    """Takes settings and a clock, and gives a provider."""
    return PROVIDERS[request.param]
