import pytest

from strongroom.testing.trial import Make
from support.providers import PROVIDERS


@pytest.fixture(params=PROVIDERS, scope="session")
def make_provider(request: pytest.FixtureRequest) -> Make:
    """Takes settings and a clock, and gives a provider."""
    make: Make = PROVIDERS[request.param]
    return make
