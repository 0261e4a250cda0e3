"""The sealed layer keeps the contract, over memory and over PostgreSQL."""

from dataclasses import replace

import pytest

from strongroom.settings import StorageSettings
from strongroom.storage import Clock, MemoryProvider, StorageProvider
from strongroom.storage.sealed import sealed
from strongroom.storage.sealed.postgres import EncryptedPostgresProvider
from strongroom.testing import CASES, SLOW_CASES, conformance_tests
from support.postgres import server
from support.providers import MASTER_KEY

SPACE = "sealed_conformance"


def memory(settings: StorageSettings, clock: Clock) -> StorageProvider:
    return sealed(MemoryProvider)(replace(settings, master_key=MASTER_KEY), clock)


def postgres(settings: StorageSettings, clock: Clock) -> StorageProvider:
    changed = replace(
        settings, directory=None, url=server().url, space=SPACE, master_key=MASTER_KEY
    )
    return EncryptedPostgresProvider(changed, clock)


test_sealed_memory = conformance_tests(memory, cases=CASES)
test_encrypted_postgres = pytest.mark.slow(conformance_tests(postgres, cases=CASES))
test_sealed_memory_slow = pytest.mark.slow(conformance_tests(memory, cases=SLOW_CASES))
test_encrypted_postgres_slow = pytest.mark.slow(conformance_tests(postgres, cases=SLOW_CASES))
