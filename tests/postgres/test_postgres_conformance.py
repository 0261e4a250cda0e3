"""The profile `postgres` keeps the contract."""

import pytest

from strongroom.testing import CASES, SLOW_CASES, conformance_tests
from support.postgres import postgres

test_postgres = conformance_tests(postgres, cases=CASES)
test_postgres_slow = pytest.mark.slow(conformance_tests(postgres, cases=SLOW_CASES))
