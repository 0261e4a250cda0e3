"""`naylence.fame`: nodes and messages."""
