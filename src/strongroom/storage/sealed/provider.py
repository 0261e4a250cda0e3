"""A provider whose engine sees neither names nor values: `sealed(MyProvider)`."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from strongroom.errors import KeystoreOlder, StoreClosed, StoreMissing
from strongroom.keys.master import read_master_key
from strongroom.settings import StorageSettings
from strongroom.storage.provider import OWN_PREFIX, SHARED_PREFIX, StorageProvider
from strongroom.storage.records import Clock, check_namespace, system_clock
from strongroom.storage.sealed import keystore as space_keystore
from strongroom.storage.sealed.keystore import Keystore
from strongroom.storage.sealed.store import SealedStore


class SealedProvider(StorageProvider):
    """Keeps namespaces in another provider, under names and with values that only it can read."""

    encrypts: ClassVar[bool] = True
    engine: ClassVar[type[StorageProvider]]
    """The provider that keeps what is sealed."""

    def __init__(self, settings: StorageSettings, clock: Clock = system_clock) -> None:
        super().__init__(settings, clock)
        self._inner = self.engine(settings, clock)
        self._keystore: Keystore | None = None
        self._stores: dict[str, tuple[str, SealedStore]] = {}
        self._opening = asyncio.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<sealed {self._inner!r}>"

    async def start(self) -> None:
        master = read_master_key(self.settings, existing=True)
        await self._inner.start()
        try:
            keystore = Keystore(await self._inner.open(space_keystore.NAMESPACE), master)
            await keystore.open()
        except BaseException:
            await self._inner.close()
            raise
        self._keystore = keystore

    async def claim(self, node_id: str | None) -> str | None:
        return await self._inner.claim(node_id)

    async def until_lost(self) -> None:
        await self._inner.until_lost()

    async def open(self, namespace: str) -> SealedStore:
        async with self._opening:
            namespace = check_namespace(namespace, await self.namespaces())
            return await self._open(namespace)

    async def namespaces(self) -> list[str]:
        keystore = await self._newest_keystore()
        in_engine = await self._names_in_engine()
        entries = keystore.contents.entries
        return sorted(name for name, entry in entries.items() if entry.engine_name in in_engine)

    async def drop(self, namespace: str) -> None:
        namespace = check_namespace(namespace)
        async with self._opening:
            keystore = await self._newest_keystore()
            self._stores.pop(namespace, None)
            entry = keystore.contents.entries.get(namespace)
            if entry is None:
                return
            if not is_own(namespace):  # the keys of a node's own namespaces are those of all nodes
                await keystore.change(lambda contents: contents.drop(namespace))
            await self._inner.drop(entry.engine_name)

    async def close(self) -> None:
        self._is_closed = True
        await self._inner.close()

    # --- inside ---------------------------------------------------------------------------------

    async def _newest_keystore(self) -> Keystore:
        if self._is_closed or self._keystore is None:
            raise StoreClosed("The provider is closed.")
        await self._keystore.read()
        return self._keystore

    async def _names_in_engine(self) -> set[str]:
        """What the engine has; KeystoreOlder if the keystore does not know all of it."""
        assert self._keystore is not None
        found = set(await self._inner.namespaces()) - {space_keystore.NAMESPACE}
        if self._unknown(found):
            await self._keystore.read()  # another process may have made them meanwhile
            if self._unknown(found):
                raise KeystoreOlder(
                    "The server has namespaces that the space's keystore does not know: an older "
                    "keystore was put back.",
                    remedy="the newest backup of the whole space",
                )
        return found

    def _unknown(self, found: set[str]) -> set[str]:
        assert self._keystore is not None
        contents = self._keystore.contents
        known = {entry.engine_name for entry in contents.entries.values()}
        return found - known - set(contents.dropped)

    async def _open(self, namespace: str) -> SealedStore:
        keystore = self._keystore
        assert keystore is not None
        if namespace not in keystore.contents.entries:
            await keystore.change(lambda contents: contents.add(namespace))
        entry = keystore.contents.entries[namespace]
        engine_name = entry.engine_name
        must_exist = entry.is_live and not is_own(namespace)
        if must_exist and engine_name not in await self._names_in_engine():
            raise StoreMissing(
                f"The server has lost the namespace {namespace!r}.",
                remedy="a backup of the space",
                namespace=namespace,
            )
        inner = await self._inner.open(engine_name)
        if not entry.is_live:
            await keystore.change(lambda contents: contents.activate(namespace))
        known = self._stores.get(namespace)
        if known is not None and known[0] == engine_name and known[1].is_over(inner):
            return known[1]
        owner = (await self._inner.claim(None) or "") if is_own(namespace) else ""
        store = SealedStore(inner, keystore, namespace, owner, self.clock)
        self._stores[namespace] = (engine_name, store)
        return store


def is_own(namespace: str) -> bool:
    """Whether each node has a namespace of this name for itself."""
    return namespace.startswith(OWN_PREFIX) and not namespace.startswith(SHARED_PREFIX)


def sealed(provider: type[StorageProvider]) -> type[SealedProvider]:
    """A provider that keeps its data in `provider`, sealed under the master key.

    >>> SealedMemory = sealed(MemoryProvider)
    """

    class Sealed(SealedProvider):
        needs_directory = provider.needs_directory
        needs_url = provider.needs_url
        engine = provider

    return Sealed
