"""`naylence.fame.core`: the fabric, addresses, and what messages are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

from strongroom import FameAddress as FameAddress
from strongroom import FameFabric as FameFabric
from strongroom.agents.agent import AGENT_CAPABILITY as AGENT_CAPABILITY
from strongroom.messaging.address import new_id as generate_id
from strongroom.messaging.envelope import Data as DataFrame
from strongroom.messaging.envelope import DeliveryAck as DeliveryAckFrame
from strongroom.messaging.envelope import Envelope as FameEnvelope

__all__ = [
    "AGENT_CAPABILITY",
    "DataFrame",
    "DeliveryAckFrame",
    "FameAddress",
    "FameDeliveryContext",
    "FameEnvelope",
    "FameFabric",
    "FameMessageResponse",
    "create_fame_envelope",
    "generate_id",
]


class FameDeliveryContext:
    """What Naylence knows of a message besides its envelope, for annotations."""


def create_fame_envelope(*, frame: Any, to: str | None = None, **fields: Any) -> FameEnvelope:
    """An envelope with a frame, to be sent to an address."""
    return FameEnvelope(frame=frame, to=None if to is None else str(to), **fields)


class FameMessageResponse(NamedTuple):
    """An answer of `on_message`: an envelope to be sent."""

    envelope: FameEnvelope
    context: Any = None
