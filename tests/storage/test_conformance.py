"""Every provider keeps the contract."""

import pytest

from strongroom.storage import MemoryProvider
from strongroom.testing import CASES, SLOW_CASES, conformance_tests

test_memory = conformance_tests(MemoryProvider, cases=CASES)

test_memory_slow = pytest.mark.slow(conformance_tests(MemoryProvider, cases=SLOW_CASES))
