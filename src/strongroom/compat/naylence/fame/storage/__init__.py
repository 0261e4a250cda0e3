"""`naylence.fame.storage`: stores."""
