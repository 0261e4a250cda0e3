"""The messages of conversations: an ordered list for each name.

    (name, number)    one message, as JSON

Numbers grow; a gap means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.errors import RevisionConflict
from strongroom.integrations.deleting import delete_all
from strongroom.storage.keys import Key
from strongroom.storage.provider import StorageProvider
from strongroom.storage.typed import Delete, KeyValueStore, Set

OWNER = "history/1"


class History:
    """One conversation, which any number of tasks may read and write.

    >>> history = await History.open(provider, "support-42")
    >>> await history.append([b'{"role":"user","content":"Hello"}'])
    >>> await history.last(10)
    [b'{"role":"user","content":"Hello"}']

    Args:
        store: A store of bytes, which no other program writes.
        name: Which conversation of the store.
    """

    def __init__(self, store: KeyValueStore[bytes], name: str) -> None:
        self.name = name
        self._store = store

    @classmethod
    async def open(
        cls, provider: StorageProvider, name: str, *, namespace: str = "histories"
    ) -> History:
        """Open a conversation in a namespace of `provider`."""
        return cls(await provider.get_bytes_store(namespace, owner=OWNER), name)

    async def last(self, limit: int | None = None) -> list[bytes]:
        """The last `limit` messages, or all of them, the oldest first."""
        scanned = self._store.scan(Key(self.name), limit=limit, reverse=True)
        return [entry.value async for entry in scanned][::-1]

    async def append(self, messages: Sequence[bytes]) -> None:
        """Add messages at the end: all of them next to each other, or none."""
        while messages:
            keys = [k async for k in self._store.keys(Key(self.name), limit=1, reverse=True)]
            [number] = [Key.of(key).parts[1] for key in keys] or [0]
            assert isinstance(number, int)
            places = range(number + 1, number + 1 + len(messages))
            try:
                await self._store.apply(
                    [
                        Set(Key(self.name, place), message, expect=0)
                        for place, message in zip(places, messages, strict=True)
                    ]
                )
            except RevisionConflict:  # another task was first; go after its messages
                continue
            return

    async def pop(self) -> bytes | None:
        """Remove the last message and return it; None if there is none."""
        while True:
            scanned = self._store.scan(Key(self.name), limit=1, reverse=True)
            found = [entry async for entry in scanned]
            if not found:
                return None
            [entry] = found
            try:
                await self._store.apply([Delete(entry.key, expect=entry.revision)])
            except RevisionConflict:  # another task has it
                continue
            return entry.value

    async def clear(self) -> None:
        """Remove all messages."""
        await delete_all(self._store, Key(self.name))
