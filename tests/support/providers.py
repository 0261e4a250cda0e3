"""The providers that every test of storage runs on."""

from dataclasses import replace

from strongroom.settings import StorageSettings
from strongroom.storage import Clock, MemoryProvider, StorageProvider
from strongroom.storage.sqlite.provider import EncryptedSqliteProvider, SqliteProvider
from strongroom.testing.trial import Make

MASTER_KEY = "00112233445566778899aabbccddeeff" * 2


def encrypted(settings: StorageSettings, clock: Clock) -> StorageProvider:
    return EncryptedSqliteProvider(replace(settings, master_key=MASTER_KEY), clock)


PROVIDERS: dict[str, Make] = {
    "memory": MemoryProvider,
    "sqlite": SqliteProvider,
    "encrypted-sqlite": encrypted,
}
