"""`naylence.fame.node.node_like`: what is a node."""

from strongroom import Node as NodeLike

__all__ = ["NodeLike"]
