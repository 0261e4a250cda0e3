"""From the name in FAME_STORAGE_PROFILE to a provider that is ready."""

from __future__ import annotations

import difflib
import logging
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from strongroom.errors import SettingsError, UnknownProfile
from strongroom.settings import StorageSettings
from strongroom.storage.records import Clock, StorageProvider, system_clock

ENTRY_POINTS = "strongroom.storage"

# By name, so that a node without files loads neither SQLite nor the cryptography behind it.
BUILT_IN: dict[str, str] = {
    "memory": "strongroom.storage.memory:MemoryProvider",
    "sqlite": "strongroom.storage.sqlite:SqliteProvider",
    "encrypted-sqlite": "strongroom.storage.sqlite:EncryptedSqliteProvider",
}

_log = logging.getLogger(__name__)


async def open_provider(settings: StorageSettings, clock: Clock = system_clock) -> StorageProvider:
    """The provider that `settings.profile` names, ready for use. Whoever opens it closes it.

    >>> provider = await open_provider(StorageSettings(profile="memory"))

    Raises:
        UnknownProfile: There is no such provider, or it cannot be loaded.
        SettingsError: The provider needs FAME_STORAGE_DB_DIRECTORY.
        DirectoryError: The data directory cannot be used.
    """
    provider_class = _find(settings.profile)
    if provider_class.needs_directory and settings.directory is None:
        raise SettingsError(
            f"The storage profile {settings.profile!r} keeps its data in files, and "
            "FAME_STORAGE_DB_DIRECTORY is not set. Try: FAME_STORAGE_DB_DIRECTORY=data"
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
            f"{name!r} is a built-in storage profile, and {plugins[name].value} claims the name in "
            f"the entry points {ENTRY_POINTS!r}. Try: uninstall that package"
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
        f"FAME_STORAGE_PROFILE is {profile!r}, and there is no such provider. "
        f"Try: {close[0] if close else ', '.join(choices)}, or package.module:Class"
    )


def _load(plugin: EntryPoint) -> type[StorageProvider]:
    try:
        found: Any = plugin.load()
    except Exception as error:
        raise UnknownProfile(
            f"The storage provider {plugin.value} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, StorageProvider)):
        raise UnknownProfile(f"{plugin.value} is no subclass of strongroom.StorageProvider.")
    return found
