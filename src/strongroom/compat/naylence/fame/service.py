"""`naylence.fame.service`: operations."""

from strongroom import operation as operation
