"""Sessions of the OpenAI Agents SDK."""

from __future__ import annotations

import json

from agents import SessionSettings, TResponseInputItem

from strongroom.integrations.history import History
from strongroom.storage.provider import StorageProvider


class StrongroomSession:
    """A session whose items are durable when `add_items` returns.

    >>> session = await StrongroomSession.open(provider, "user-1")
    >>> await Runner.run(agent, "Hello", session=session)

    Args:
        history: Where its items are; its name is the session's id.
        session_settings: How many items to read when a call does not say.
    """

    def __init__(self, history: History, session_settings: SessionSettings | None = None) -> None:
        self.session_id = history.name
        self.session_settings = session_settings or SessionSettings()
        self._history = history

    @classmethod
    async def open(
        cls,
        provider: StorageProvider,
        session_id: str,
        *,
        namespace: str = "openai_agents",
        session_settings: SessionSettings | None = None,
    ) -> StrongroomSession:
        """Open a session in a namespace of `provider`; an agent's is `self.storage_provider`."""
        history = await History.open(provider, session_id, namespace=namespace)
        return cls(history, session_settings)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The last `limit` items, or as many as the settings say, the oldest first."""
        most = limit if limit is not None else self.session_settings.limit
        if most is not None and most <= 0:
            return []
        return [json.loads(item) for item in await self._history.last(most)]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items at the end, next to each other."""
        await self._history.append([json.dumps(item, allow_nan=False).encode() for item in items])

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the last item and return it."""
        item = await self._history.pop()
        return None if item is None else json.loads(item)

    async def clear_session(self) -> None:
        """Remove all items."""
        await self._history.clear()
