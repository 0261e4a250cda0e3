"""`naylence.fame.sentinel`: the sentinel."""

from strongroom import Sentinel as Sentinel
