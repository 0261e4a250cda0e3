"""Messages for addresses that a node had before a restart and has not bound again yet.

A sentinel that stayed up still routes those addresses to the node before their agents have started
again. The messages wait here instead of being refused.
"""

from __future__ import annotations

from strongroom.messaging.envelope import Data, Envelope
from strongroom.messaging.flow import Release

HOLD_SECONDS = 10.0
"""Seconds after the start for which messages are held."""
MAX_HELD = 1024

Message = tuple[Envelope, Data, Release]


class HeldMessages:
    """The messages that wait for an address to be bound again."""

    def __init__(self, addresses: set[str]) -> None:
        """`addresses` are those that are awaited; each is removed when it is bound."""
        self._addresses = addresses
        self._held: list[Message] = []

    def hold(self, message: Message) -> bool:
        """Keep a message until its address is bound; False if nothing will be bound there."""
        if message[0].to not in self._addresses or len(self._held) >= MAX_HELD:
            return False
        self._held.append(message)
        return True

    def pop(self, address: str) -> list[Message]:
        """The messages for an address that is bound now."""
        self._addresses.discard(address)
        ready = [message for message in self._held if message[0].to == address]
        self._held = [message for message in self._held if message[0].to != address]
        return ready

    def pop_all(self) -> list[Message]:
        """All messages; from now on none is held."""
        self._addresses.clear()
        held, self._held = self._held, []
        return held
