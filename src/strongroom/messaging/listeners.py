"""Listeners that see, change or drop the messages of a node."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from strongroom.background import BackgroundTasks
from strongroom.messaging.address import FameAddress
from strongroom.messaging.envelope import Envelope

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = logging.getLogger(__name__)


class NodeEventListener:
    """Sees the messages and acknowledgements that leave a node and that arrive at it.

    Each method returns the envelope, or another in its place, or None to drop it. A dropped message
    is lost, as on a link that breaks. `context` is None.

    >>> class Losing(NodeEventListener):
    ...     async def on_forward_upstream(self, node, envelope, context=None):
    ...         return None if isinstance(envelope.frame, DeliveryAckFrame) else envelope
    >>> node.add_event_listener(Losing())
    """

    async def on_forward_upstream(
        self,
        node: Any,  # noqa: ARG002 - for those who override it
        envelope: Envelope,
        context: Any = None,  # noqa: ARG002
    ) -> Envelope | None:
        """A message of this node is about to leave for another node."""
        return envelope

    async def on_deliver_local(
        self,
        node: Any,  # noqa: ARG002
        address: FameAddress | None,  # noqa: ARG002
        envelope: Envelope,
        context: Any = None,  # noqa: ARG002
    ) -> Envelope | None:
        """A message is about to be delivered on this node."""
        return envelope


class EventListeners:
    """The listeners of a node, each of which gets what the one before it returned."""

    def __init__(self, node: object) -> None:
        self._node = node
        self.registered: list[NodeEventListener] = []
        self.tasks = BackgroundTasks("an event listener did not finish with a message")

    def add(self, listener: NodeEventListener) -> None:
        self.registered.append(listener)

    def remove(self, listener: NodeEventListener) -> None:
        self.registered.remove(listener)

    async def leaving(self, envelope: Envelope) -> Envelope | None:
        """What is to leave the node in place of `envelope`."""
        seen: Envelope | None = envelope
        for each in tuple(self.registered):
            if seen is not None:
                seen = await _heard(each.on_forward_upstream(self._node, seen, None), seen)
        return seen

    async def arriving(self, envelope: Envelope) -> Envelope | None:
        """What is to be delivered in place of `envelope`."""
        seen: Envelope | None = envelope
        for each in tuple(self.registered):
            if seen is not None:
                address = FameAddress(seen.to) if seen.to else None
                hook = each.on_deliver_local(self._node, address, seen, None)
                seen = await _heard(hook, seen)
        return seen


async def _heard(hook: Coroutine[Any, Any, Envelope | None], envelope: Envelope) -> Envelope | None:
    try:
        return await hook
    except Exception:
        log.exception("an event listener raised; the message goes on")
        return envelope
