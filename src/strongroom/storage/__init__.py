"""Storage: the typed store for users, and what the author of a provider needs."""

from strongroom.storage.encoding import Upgrade
from strongroom.storage.keys import Key, prefix_end
from strongroom.storage.memory import MemoryProvider
from strongroom.storage.provider import StorageProvider, open_provider
from strongroom.storage.records import (
    Batch,
    Changes,
    Clock,
    Feature,
    Page,
    Record,
    RecordChange,
    RecordStore,
    Write,
    check_key,
    check_namespace,
    check_value,
    system_clock,
)
from strongroom.storage.transaction import Transaction
from strongroom.storage.typed import Change, Delete, Entry, KeyValueStore, Set

__all__ = [
    "Batch",
    "Change",
    "Changes",
    "Clock",
    "Delete",
    "Entry",
    "Feature",
    "Key",
    "KeyValueStore",
    "MemoryProvider",
    "Page",
    "Record",
    "RecordChange",
    "RecordStore",
    "Set",
    "StorageProvider",
    "Transaction",
    "Upgrade",
    "Write",
    "check_key",
    "check_namespace",
    "check_value",
    "open_provider",
    "prefix_end",
    "system_clock",
]
