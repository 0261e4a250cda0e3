"""The moment between a node's return and the return of its names.

A sentinel that never went away still routes a restarted node's names to it, before what answers
there has started. Those messages wait here, as they would for a busy node, and are not refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from strongroom.messaging.envelope import Data, Envelope
from strongroom.messaging.flow import Taken

WAIT = 10.0
MAX_HELD = 1024

Deliver = Callable[[Envelope, Data, Taken], None]


class Returning:
    """Messages for names that the node had when it last ran, and has not bound again yet."""

    def __init__(self, addresses: Iterable[str], deliver: Deliver) -> None:
        self._addresses = set(addresses)
        self._deliver = deliver
        self._held: list[tuple[Envelope, Data, Taken]] = []
        self._timer = asyncio.get_running_loop().call_later(WAIT, self.give_up)

    def hold(self, envelope: Envelope, data: Data, taken: Taken) -> bool:
        """Keep a message for later; False when it is for no such name."""
        if envelope.to not in self._addresses or len(self._held) >= MAX_HELD:
            return False
        self._held.append((envelope, data, taken))
        return True

    def bound(self, address: str) -> None:
        """The name is back: deliver what waited for it."""
        self._addresses.discard(address)
        ready = [message for message in self._held if message[0].to == address]
        self._held = [message for message in self._held if message[0].to != address]
        for message in ready:
            self._deliver(*message)

    def give_up(self) -> None:
        """The other names do not come back: let what waits for them be refused."""
        self._timer.cancel()
        self._addresses.clear()
        held, self._held = self._held, []
        for message in held:
            self._deliver(*message)
