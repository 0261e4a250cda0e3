"""What a storage provider is, and how FAME_STORAGE_PROFILE chooses one."""

from __future__ import annotations

import asyncio
import difflib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, final

from strongroom.errors import InvalidNamespace, NotSupported, SettingsError, UnknownProfile
from strongroom.settings import StorageSettings
from strongroom.storage.encoding import M, Upgrade, V
from strongroom.storage.records import Batch, Clock, RecordStore, check_namespace, system_clock
from strongroom.storage.typed import KeyValueStore

ENTRY_POINTS = "strongroom.storage"

OWN_PREFIX = "__"
"""How the names of the node's own namespaces begin."""
SHARED_PREFIX = "__agent_"
"""How the names of namespaces with the state of agents begin. Replicas of an agent share them."""
NODE_META = "__node_meta"
"""The namespace in which a node and its provider remember who they are."""

# Imported by name, so that a node without files loads neither SQLite nor cryptography.
BUILT_IN: dict[str, str] = {
    "memory": "strongroom.storage.memory:MemoryProvider",
    "sqlite": "strongroom.storage.sqlite.provider:SqliteProvider",
    "encrypted-sqlite": "strongroom.storage.sqlite.provider:EncryptedSqliteProvider",
    "postgres": "strongroom.storage.postgres.provider:PostgresProvider",
    "encrypted-postgres": "strongroom.storage.sealed.postgres:EncryptedPostgresProvider",
}

_log = logging.getLogger(__name__)


class StorageProvider(ABC):
    """Where a node keeps its data: it opens one `RecordStore` for each namespace.

    A provider is made from the node's `StorageSettings` and a clock. `FAME_STORAGE_PROFILE` chooses
    it: a built-in name, the name of an entry point of the group `strongroom.storage`, or
    `package.module:Class`.
    """

    needs_directory: ClassVar[bool] = False
    """Whether FAME_STORAGE_DB_DIRECTORY must be set."""
    needs_url: ClassVar[bool] = False
    """Whether FAME_STORAGE_URL must be set."""
    encrypts: ClassVar[bool] = False
    """Whether what is stored is encrypted under the master key."""

    def __init__(self, settings: StorageSettings, clock: Clock = system_clock) -> None:
        self.settings = settings
        self.clock = clock
        self.typed: dict[str, KeyValueStore[Any]] = {}

    def __repr__(self) -> str:
        place = self.settings.directory
        return f"<{type(self).__name__}{f' in {place}' if place else ''}>"

    async def start(self) -> None:  # noqa: B027  # most providers need no start
        """Prepare what needs to be awaited. Called once, before any other method.

        If it raises an error, it has released everything that it had acquired.
        """

    async def claim(self, node_id: str | None) -> str | None:
        """Claim the id of the node to which the own namespaces belong, before any is opened.

        Engines that nodes share take care that only one process has an id. Without `node_id` they
        choose one, for as long as the provider is open.

        Returns:
            The id; None if the node is to choose one.

        Raises:
            IdentityInUse: Another process has the id.
        """
        return node_id

    async def until_lost(self) -> None:
        """Wait until the claim is lost, which is never where no other process can have it.

        Raises:
            IdentityLost: Another process has claimed the id.
        """
        await asyncio.get_running_loop().create_future()

    @final
    async def get_kv_store(
        self, model_cls: type[M], namespace: str, *, upgrade: Sequence[Upgrade] = ()
    ) -> KeyValueStore[M]:
        """Open a namespace as a store of `model_cls`, a Pydantic model.

        >>> notes = await provider.get_kv_store(Note, "notes")

        Args:
            model_cls: The type of the records.
            namespace: 1 to 120 characters from `A-Z a-z 0-9 . _ -`; the first is a letter or digit.
            upgrade: One function for each older version of the model, oldest first. It takes a JSON
                object as that version stored it, and returns it as the next version stores it.

        Raises:
            InvalidNamespace: The name is not allowed, or differs from another's only in case.
            StorageError: The namespace is open as a store of another model.
            StoreError: The namespace's file cannot be used.
        """
        return await self._open_typed(model_cls, check_users_namespace(namespace), upgrade)

    @final
    async def get_bytes_store(self, namespace: str, *, owner: str = "") -> KeyValueStore[bytes]:
        """Open a namespace as a store of bytes, which are kept as they are given.

        >>> blobs = await provider.get_bytes_store("blobs", owner="my-cache/1")

        Args:
            namespace: As for `get_kv_store`.
            owner: Who knows what the bytes mean, and in which version: up to 120 characters without
                blanks. It is stored with each record, and must be the same at the next opening.

        Raises:
            InvalidNamespace: The name is not allowed, or differs from another's only in case.
            StoreError: The namespace's file cannot be used.
        """
        return await self._open_typed(bytes, check_users_namespace(namespace), owner=owner)

    @final
    async def own_store(self, model_cls: type[M], namespace: str) -> KeyValueStore[M]:
        """Open one of the node's own namespaces, whose names begin with `__`."""
        if not namespace.startswith(OWN_PREFIX):
            raise InvalidNamespace(f"{namespace!r} is not one of the node's own namespaces.")
        return await self._open_typed(model_cls, namespace)

    async def _open_typed(
        self, model: type[V], namespace: str, upgrade: Sequence[Upgrade] = (), *, owner: str = ""
    ) -> KeyValueStore[V]:
        namespace = check_namespace(namespace)
        records = await self.open(namespace)
        known = self.typed.get(namespace)
        if known is not None and known.is_on(records):
            known.check_model(model)
        store = KeyValueStore(
            records, model, namespace, self.clock, upgrade, encrypts=self.encrypts, owner=owner
        )
        self.typed[namespace] = (
            store  # so that `strongroom doctor` can check records against the model
        )
        return store

    @abstractmethod
    async def open(self, namespace: str) -> RecordStore:
        """Open a namespace, and create it if it is new. One that is open is not opened twice."""

    async def apply_together(self, batches: Sequence[Batch]) -> None:
        """Store all writes of several namespaces, or none, and return when they are durable.

        A provider whose stores declare TOGETHER overrides it.

        Args:
            batches: Each for a namespace of its own.

        Raises:
            RevisionConflict: A condition does not hold; nothing was stored.
            NotSupported: There are several, and the provider stores one namespace at a time.
        """
        if len(batches) > 1:
            raise NotSupported(
                f"The profile {self.settings.profile} stores one namespace at a time.",
                remedy="FAME_STORAGE_PROFILE=sqlite, encrypted-sqlite or memory",
            )
        for batch in batches:
            store = await self.open(batch.namespace)
            await store.apply(batch.writes, checks=batch.checks)

    @abstractmethod
    async def namespaces(self) -> list[str]:
        """The names of all namespaces, sorted."""

    @abstractmethod
    async def drop(self, namespace: str) -> None:
        """Delete a namespace with all its records. It need not exist.

        Raises:
            InvalidNamespace: The name is not allowed; `check_namespace` raises it.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every namespace; then `open` raises `StoreClosed`. Closing twice does nothing."""


def check_batches(batches: Sequence[Batch]) -> None:
    """Raise ValueError where one namespace has two batches, or is the provider's own."""
    names = [batch.namespace for batch in batches]
    if NODE_META in names or len(set(names)) < len(names):
        raise ValueError(f"Each batch has a namespace of its own, and none is {NODE_META}.")


def check_users_namespace(namespace: str) -> str:
    """`namespace` as a plain str. InvalidNamespace unless users may have it."""
    namespace = check_namespace(namespace)
    if namespace.startswith(OWN_PREFIX):
        raise InvalidNamespace(
            f"{namespace!r} cannot be a namespace: the node's own begin with {OWN_PREFIX!r}.",
            remedy="a name that begins with a letter or digit",
        )
    return namespace


async def open_provider(settings: StorageSettings, clock: Clock = system_clock) -> StorageProvider:
    """Start the provider that `settings.profile` names. The caller must close it.

    >>> provider = await open_provider(StorageSettings(profile="memory"))

    Raises:
        UnknownProfile: There is no such provider, or it cannot be loaded.
        SettingsError: The provider needs FAME_STORAGE_DB_DIRECTORY or FAME_STORAGE_URL, or does not
            use the one that is set.
        DirectoryError: The data directory cannot be used.
    """
    provider_class = _find(settings.profile)
    if provider_class.needs_directory and settings.directory is None:
        raise SettingsError(
            f"The storage profile {settings.profile!r} keeps its data in files, and "
            "FAME_STORAGE_DB_DIRECTORY is not set.",
            remedy="FAME_STORAGE_DB_DIRECTORY=data",
        )
    if provider_class.needs_url and settings.url is None:
        raise SettingsError(
            f"The storage profile {settings.profile!r} keeps its data in a server, and "
            "FAME_STORAGE_URL is not set.",
            remedy="FAME_STORAGE_URL=postgresql://user@host/database",
        )
    misplaced = settings.directory if provider_class.needs_url else settings.url
    if misplaced and (provider_class.needs_url or provider_class.needs_directory):
        name = "FAME_STORAGE_DB_DIRECTORY" if provider_class.needs_url else "FAME_STORAGE_URL"
        raise SettingsError(
            f"{name} is set, and the storage profile {settings.profile!r} does not use it.",
            remedy=f"remove {name}, or choose another FAME_STORAGE_PROFILE",
        )
    if settings.has_master_key and not provider_class.encrypts:
        _log.warning(
            "A master key is set, but the storage profile %r does not encrypt.", settings.profile
        )
    provider = provider_class(settings, clock)
    await provider.start()
    return provider


def _find(profile: str) -> type[StorageProvider]:
    plugins = {plugin.name: plugin for plugin in entry_points(group=ENTRY_POINTS)}
    if clashing := sorted(plugins.keys() & BUILT_IN.keys()):
        name = clashing[0]
        raise UnknownProfile(
            f"{name!r} is a built-in storage profile, and {plugins[name].value} claims "
            f"the name in the entry points {ENTRY_POINTS!r}.",
            remedy="uninstall that package",
        )
    if profile in BUILT_IN:
        return _load(EntryPoint(profile, BUILT_IN[profile], ENTRY_POINTS))
    if profile in plugins:
        return _load(plugins[profile])
    if ":" in profile:
        return _load(EntryPoint(profile, profile, ENTRY_POINTS))
    choices = [*BUILT_IN, *sorted(plugins)]
    close = difflib.get_close_matches(profile, choices, n=1)
    raise UnknownProfile(
        f"FAME_STORAGE_PROFILE is {profile!r}, and there is no such provider.",
        remedy=f"{close[0] if close else ', '.join(choices)}, or package.module:Class",
    )


def _load(plugin: EntryPoint) -> type[StorageProvider]:
    try:
        found: Any = plugin.load()
    except Exception as error:
        raise UnknownProfile(
            f"The storage provider {plugin.value} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, StorageProvider)):
        raise UnknownProfile(f"{plugin.value} is not a subclass of strongroom.StorageProvider.")
    return found
