"""Message histories of Pydantic AI."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter

from strongroom.integrations.history import History
from strongroom.storage.provider import StorageProvider


class MessageHistory:
    """The messages of one conversation, durable when `append` returns.

    >>> history = await MessageHistory.open(provider, "user-1")
    >>> result = await agent.run("Hello", message_history=await history.messages())
    >>> await history.append(result.new_messages())

    Args:
        history: Where its messages are.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    @classmethod
    async def open(
        cls, provider: StorageProvider, name: str, *, namespace: str = "pydantic_ai"
    ) -> MessageHistory:
        """Open a conversation in a namespace of `provider`."""
        return cls(await History.open(provider, name, namespace=namespace))

    async def messages(self, limit: int | None = None) -> list[ModelMessage]:
        """The last `limit` messages, or all of them, the oldest first."""
        read = ModelMessagesTypeAdapter.validate_json
        return [read(b"[" + message + b"]")[0] for message in await self._history.last(limit)]

    async def append(self, messages: Sequence[ModelMessage]) -> None:
        """Add messages at the end, next to each other."""
        write = ModelMessagesTypeAdapter.dump_json
        await self._history.append([write([message])[1:-1] for message in messages])

    async def clear(self) -> None:
        """Remove all messages."""
        await self._history.clear()
