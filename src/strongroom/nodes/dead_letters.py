"""Messages that cannot be handled or delivered, kept for an operator."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from strongroom.messaging.stored import DeadLetter

if TYPE_CHECKING:
    from strongroom.storage.typed import KeyValueStore

MAX_DEAD_LETTERS = 10_000
KEEP_SECONDS = 30 * 24 * 3600.0

log = logging.getLogger(__name__)


class DeadLetters:
    """The messages that were set aside. `strongroom delivery` shows and retries them."""

    def __init__(self, store: KeyValueStore[DeadLetter]) -> None:
        self._store = store

    async def add(self, key: str, letter: DeadLetter) -> None:
        """Set a message aside. Beyond MAX_DEAD_LETTERS it is dropped."""
        if await self._store.count() >= MAX_DEAD_LETTERS:
            log.error("message %s is dropped: %d are set aside already", key, MAX_DEAD_LETTERS)
            return
        await self._store.set(key, letter, ttl=KEEP_SECONDS)
        log.warning("message %s is set aside: %s", key, letter.reasons[-1])
