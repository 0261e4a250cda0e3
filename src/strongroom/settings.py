"""Every FAME_* variable, read once into one frozen object.

Nothing else in the package reads the environment. Secrets are shown in no repr, and those that
were read are removed from the environment, so that child processes do not inherit them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strongroom.errors import SettingsError

ATTACH_PATH = "/fame/v1/attach/ws/downstream"
HEALTH_PATH = "/fame/v1/attach/health"
DEFAULT_PORT = 8000


def _variable(
    name: str, default: Any = None, *, secret: bool = False, choices: tuple[str, ...] = ()
) -> Any:
    metadata = {"variable": name, "secret": secret, "choices": choices}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Where and how a node keeps its data; what a storage provider is made from.

    >>> StorageSettings(profile="sqlite", directory=Path("data"))
    """

    profile: str = _variable("FAME_STORAGE_PROFILE", "memory")
    directory: Path | None = _variable("FAME_STORAGE_DB_DIRECTORY")
    master_key: str | None = _variable("FAME_STORAGE_MASTER_KEY", secret=True)
    master_key_file: Path | None = _variable("FAME_STORAGE_MASTER_KEY_FILE")
    master_key_command: str | None = _variable("FAME_STORAGE_MASTER_KEY_COMMAND")
    previous_master_key: str | None = _variable("FAME_STORAGE_MASTER_KEY_PREVIOUS", secret=True)

    @property
    def has_master_key(self) -> bool:
        """Whether any source of a master key is named."""
        return any((self.master_key, self.master_key_file, self.master_key_command))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a node.

    >>> Settings.from_environment({"FAME_LISTENER_PORT": "9000"}).listener_port
    9000
    """

    storage: StorageSettings = field(default_factory=StorageSettings)
    node_id: str | None = _variable("FAME_NODE_ID")
    listener_host: str = _variable("FAME_LISTENER_HOST", "127.0.0.1")
    listener_port: int = _variable("FAME_LISTENER_PORT", DEFAULT_PORT)
    admission_url: str | None = _variable("FAME_DIRECT_ADMISSION_URL")
    admission_token: str | None = _variable("FAME_ADMISSION_TOKEN", secret=True)
    max_initial_attempts: int = _variable("FAME_SESSION_MAX_INITIAL_ATTEMPTS", 1)
    security_profile: str | None = _variable("FAME_SECURITY_PROFILE")
    delivery_profile: str = _variable(
        "FAME_DELIVERY_PROFILE", "at-most-once", choices=("at-most-once", "at-least-once")
    )
    show_envelopes: bool = _variable("FAME_SHOW_ENVELOPES", False)
    log_level: str = _variable(
        "FAME_LOG_LEVEL", "info", choices=("debug", "info", "warning", "error", "critical")
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the variables of `environ` (default: this process's).

        Raises:
            SettingsError: A value cannot be understood; the message names the variable.
        """
        source = _without_secrets(os.environ) if environ is None else environ
        values = {name: _read(cls, name, source) for name in _fields(cls) if name != "storage"}
        storage = {name: _read(StorageSettings, name, source) for name in _fields(StorageSettings)}
        return cls(storage=StorageSettings(**storage), **values)


_taken: dict[str, str] = {}


def _without_secrets(environ: MutableMapping[str, str]) -> Mapping[str, str]:
    """Take the secrets out of the process's environment, and remember them for the next reading."""
    for spec in (*_fields(Settings).values(), *_fields(StorageSettings).values()):
        if spec.metadata.get("secret") and (name := spec.metadata["variable"]) in environ:
            _taken[name] = environ.pop(name)
    return {**environ, **_taken}


def _fields(cls: type[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = cls.__dataclass_fields__
    return fields


def _read(cls: type[Any], name: str, environ: Mapping[str, str]) -> Any:
    spec = _fields(cls)[name]
    variable = spec.metadata["variable"]
    text = environ.get(variable, "")
    if text == "":  # an empty variable is an unset one, as in a shell's ${NAME:-default}
        return spec.default
    choices = spec.metadata["choices"]
    if choices and text.lower() not in choices:
        raise SettingsError(f"{variable} is {text!r}.", remedy=f"{', '.join(choices)}")
    kind = spec.type
    if kind.startswith("bool"):
        return _flag(variable, text)
    if kind.startswith("int"):
        return _number(variable, text)
    return Path(text) if kind.startswith("Path") else text


def _flag(variable: str, text: str) -> bool:
    match text.strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise SettingsError(f"{variable} is {text!r}.", remedy=f"{variable}=true or {variable}=false")


def _number(variable: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise SettingsError(f"{variable} is {text!r}.", remedy="a whole number") from None
    if number < 0:
        raise SettingsError(f"{variable} is {text!r}.", remedy="a number that is not negative")
    return number


def variables() -> dict[str, object]:
    """Every variable that is read, with its default."""
    return {
        spec.metadata["variable"]: spec.default
        for cls in (StorageSettings, Settings)
        for spec in _fields(cls).values()
        if "variable" in spec.metadata
    }
