"""An agent that answers with a language model, and remembers what was said."""

import asyncio
import os
from pkgutil import resolve_name

from pydantic import Field

from strongroom import BaseAgent, BaseAgentState, operation


class Conversation(BaseAgentState):
    said: list[str] = Field(default_factory=list)


class Assistant(BaseAgent[Conversation]):
    async def start(self) -> None:
        self.model = resolve_name(os.environ.get("LANGUAGE_MODEL", "stub:answer"))

    @operation
    async def chat(self, text: str) -> str:
        async with self.state as conversation:
            conversation.said.append(text)
            answer = str(await self.model(conversation.said))
            conversation.said.append(answer)
        return answer


if __name__ == "__main__":
    sentinel = {"node": {"type": "Sentinel"}}
    asyncio.run(Assistant().aserve("assistant@fame.fabric", root_config=sentinel))
