"""`naylence.fame.util`: logging."""
