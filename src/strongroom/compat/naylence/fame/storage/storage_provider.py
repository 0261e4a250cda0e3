"""`naylence.fame.storage.storage_provider`."""

from strongroom import StorageProvider as StorageProvider
