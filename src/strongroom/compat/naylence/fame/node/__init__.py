"""`naylence.fame.node`: the node of a program."""
