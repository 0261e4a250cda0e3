"""`naylence.fame.node.node`: the node of this context."""

from strongroom import Fabric


def get_node() -> Fabric:
    """The current fabric, which is a node."""
    return Fabric.current()
