"""Chat message histories of LangChain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from strongroom.integrations.history import History
from strongroom.integrations.waiting import wait_on
from strongroom.storage.provider import StorageProvider


class StrongroomChatMessageHistory(BaseChatMessageHistory):
    """The messages of one conversation, durable when `aadd_messages` returns.

    >>> history = await StrongroomChatMessageHistory.open(provider, "user-1")
    >>> await history.aadd_messages([HumanMessage("Hello")])

    What does not begin with `a` may be used from threads other than that of the event loop.

    Args:
        history: Where its messages are.
    """

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls, provider: StorageProvider, name: str, *, namespace: str = "langchain"
    ) -> StrongroomChatMessageHistory:
        """Open a conversation in a namespace of `provider`."""
        return cls(await History.open(provider, name, namespace=namespace))

    async def aget_messages(self) -> list[BaseMessage]:
        """All messages, the oldest first."""
        return messages_from_dict([json.loads(text) for text in await self._history.last()])

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages at the end, next to each other."""
        await self._history.append(
            [json.dumps(message_to_dict(message)).encode() for message in messages]
        )

    async def aclear(self) -> None:
        """Remove all messages."""
        await self._history.clear()

    @property
    def messages(self) -> list[BaseMessage]:  # a field in the base class
        """`aget_messages`, for a thread."""
        return wait_on(self._loop, self.aget_messages())

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """`aadd_messages`, for a thread."""
        wait_on(self._loop, self.aadd_messages(messages))

    def clear(self) -> None:
        """`aclear`, for a thread."""
        wait_on(self._loop, self.aclear())
