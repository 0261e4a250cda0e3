"""`naylence.fame.node.node_event_listener`: what sees the messages of a node."""

from strongroom.messaging.listeners import NodeEventListener

__all__ = ["NodeEventListener"]
