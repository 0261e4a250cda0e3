"""Mistakes that a type checker must find. A comment after each says what is wrong."""

# ruff: noqa: F401, I001

from collections.abc import AsyncIterator

from strongroom import Agnet  # error: no such name
from strongroom import BaseAgent, KeyValueStore, Node, operation


class Calculator(BaseAgent):
    @operation
    def add(self, a: int, b: int = 0) -> int:
        return a + b

    @operation(name="difference")
    async def subtract(self, a: int, b: int) -> int:
        return a - b

    @operation(streaming=True)
    async def count(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number


class Named(BaseAgent):
    def __init__(self, greeting: str) -> None:
        super().__init__()
        self.greeting = greeting


Calculator("name", 2)  # error: one argument too many
Calculator(nmae="name")  # error: no such parameter
Named(1)  # error: not a str


async def main(node: Node) -> None:
    remote = Calculator.remote_by_address("calculator@fame.fabric")
    await remote.add("one")  # error: not an int
    await remote.add()  # error: an argument is missing
    await remote.subtract(1, c=2)  # error: no such parameter
    text: str = await remote.subtract(1, 2)  # error: the result is an int
    print(remote.add(1) + 1)  # error: not awaited
    await remote.multiply(1, 2)  # error: no such operation
    async for item in remote.count("3"):  # error: not an int
        print(text, item)
    await node.storage.get_kv_store(int, "numbers")  # error: not a model


def keys(store: KeyValueStore[int]) -> None:  # error: not a model
    print(store)
