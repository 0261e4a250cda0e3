"""Every provider keeps the contract."""

import pytest

from strongroom.testing import CASES, SLOW_CASES, conformance_tests
from support.providers import PROVIDERS

test_memory = conformance_tests(PROVIDERS["memory"], cases=CASES)
test_sqlite = conformance_tests(PROVIDERS["sqlite"], cases=CASES)
test_encrypted_sqlite = conformance_tests(PROVIDERS["encrypted-sqlite"], cases=CASES)

test_memory_slow = pytest.mark.slow(conformance_tests(PROVIDERS["memory"], cases=SLOW_CASES))
test_sqlite_slow = pytest.mark.slow(conformance_tests(PROVIDERS["sqlite"], cases=SLOW_CASES))
test_encrypted_sqlite_slow = pytest.mark.slow(
    conformance_tests(PROVIDERS["encrypted-sqlite"], cases=SLOW_CASES)
)
