"""`naylence.fame.storage.key_value_store`."""

from strongroom import KeyValueStore as KeyValueStore
