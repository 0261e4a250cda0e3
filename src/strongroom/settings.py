"""Every FAME_* variable, and the frozen objects that hold their values.

Nothing else in the package reads these variables. No repr shows a secret.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from strongroom.errors import SettingsError

ATTACH_PATH = "/fame/v1/attach/ws/downstream"
HEALTH_PATH = "/fame/v1/attach/health"
GATEWAY_PATH = "/fame/v1/gateway"
DEFAULT_PORT = 8000
DEFAULT_GATEWAY_PORT = 8080
HIGHEST_PORT = 65535
TOOK = "STRONGROOM_TOOK"


class Variable(NamedTuple):
    """An environment variable, and how its text becomes the value of a setting."""

    name: str
    about: str
    default: Any = None
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    is_secret: bool = False
    least: int = 0
    """The smallest number."""


def _variable(*description: Any, **options: Any) -> Any:
    variable = Variable(*description, **options)
    metadata = {"variable": variable}
    return field(default=variable.default, repr=not variable.is_secret, metadata=metadata)


def _flag(text: str) -> bool:
    match text.strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("true or false")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for each in text.split(",") if (name := each.strip().lower().rstrip("/")))


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError("a number of seconds")
    return seconds


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Where and how a node keeps its data; what a storage provider is made from.

    >>> StorageSettings(profile="sqlite", directory=Path("data")).directory
    PosixPath('data')
    """

    profile: str = _variable(
        "FAME_STORAGE_PROFILE",
        "`memory`, `sqlite`, `encrypted-sqlite`, `postgres`, `encrypted-postgres`, the name of a "
        "package's entry point, or `package.module:Class`",
        "memory",
    )
    directory: Path | None = _variable(
        "FAME_STORAGE_DB_DIRECTORY",
        "the data directory, for profiles that keep files; one for each node",
        parse=Path,
    )
    master_key: str | None = _variable(
        "FAME_STORAGE_MASTER_KEY",
        "the master key: 32 random bytes as base64url or hex (`strongroom key new`), or a "
        "passphrase of 12 characters or more",
        is_secret=True,
    )
    master_key_file: Path | None = _variable(
        "FAME_STORAGE_MASTER_KEY_FILE",
        "a file that holds the master key, as Docker and systemd pass secrets",
        parse=Path,
    )
    master_key_command: str | None = _variable(
        "FAME_STORAGE_MASTER_KEY_COMMAND", "a command that prints the master key"
    )
    previous_master_key: str | None = _variable(
        "FAME_STORAGE_MASTER_KEY_PREVIOUS",
        "the former master key, for one start after a rotation that was interrupted",
        is_secret=True,
    )

    url: str | None = _variable(
        "FAME_STORAGE_URL",
        "the server, for profiles that keep data in one: `postgresql://user@host/database`; "
        "several hosts with commas",
        is_secret=True,
    )
    space: str = _variable(
        "FAME_STORAGE_SPACE",
        "what the nodes share in the server: a schema of the database; up to 40 characters from "
        "`a-z 0-9 _`, the first a letter",
        "strongroom",
    )
    credentials: str | None = _variable(
        "FAME_STORAGE_CREDENTIALS", "the password for the server", is_secret=True
    )
    credentials_file: Path | None = _variable(
        "FAME_STORAGE_CREDENTIALS_FILE",
        "a file that holds the password; it is read again for each connection",
        parse=Path,
    )
    tls: bool = _variable(
        "FAME_STORAGE_TLS",
        "whether connections to a server on another machine are encrypted; `off` sends everything "
        "in clear",
        default=True,
        parse=_flag,
    )
    tls_ca_file: Path | None = _variable(
        "FAME_STORAGE_TLS_CA_FILE",
        "the certificates that may have signed the server's; by default those of the system",
        parse=Path,
    )
    tls_cert_file: Path | None = _variable(
        "FAME_STORAGE_TLS_CERT_FILE", "this program's certificate, if the server asks", parse=Path
    )
    tls_key_file: Path | None = _variable(
        "FAME_STORAGE_TLS_KEY_FILE", "the key of this program's certificate", parse=Path
    )
    timeout_seconds: int = _variable(
        "FAME_STORAGE_TIMEOUT",
        "how many seconds a call waits while the server is away",
        30,
        parse=_whole_number,
    )
    pool: int = _variable(
        "FAME_STORAGE_POOL",
        "the maximum number of connections to the server; 2 or more",
        8,
        parse=_whole_number,
    )

    def __post_init__(self) -> None:
        _check(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", self.space):
            raise SettingsError(
                f"FAME_STORAGE_SPACE is {self.space!r}.",
                remedy="1 to 40 letters a-z, digits or '_', beginning with a letter",
            )
        if self.url is not None and not re.match(r"postgres(ql)?://", self.url):
            raise SettingsError(
                "FAME_STORAGE_URL is not the URL of a PostgreSQL server.",
                remedy="postgresql://user@host/database",
            )
        if self.pool < 2:  # noqa: PLR2004  # one of them listens
            raise SettingsError(f"FAME_STORAGE_POOL is {self.pool}.", remedy="2 or more")

    @property
    def has_master_key(self) -> bool:
        """Whether any source of a master key is named."""
        return any((self.master_key, self.master_key_file, self.master_key_command))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a node. Those that are not given have their defaults.

    >>> Settings.from_environment({"FAME_LISTENER_PORT": "9000"}).listener_port
    9000

    Raises:
        SettingsError: A value is not allowed; the message names its variable.
    """

    storage: StorageSettings = field(default_factory=StorageSettings)
    node_id: str | None = _variable(
        "FAME_NODE_ID", "the node's id; by default a random one, which its storage keeps"
    )
    listener_host: str = _variable(
        "FAME_LISTENER_HOST", "the address on which a sentinel listens", "127.0.0.1"
    )
    listener_port: int = _variable(
        "FAME_LISTENER_PORT",
        "the port on which a sentinel listens; 0 takes any free one",
        DEFAULT_PORT,
        parse=_whole_number,
    )
    gateway: bool = _variable(
        "FAME_LISTENER_AGENT_HTTP_GATEWAY_ENABLED",
        "whether the node also answers HTTP, as the [gateway](gateway.md)",
        default=False,
        parse=_flag,
    )
    gateway_port: int = _variable(
        "FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT",
        "the gateway's port, on FAME_LISTENER_HOST; 0 takes any free one",
        DEFAULT_GATEWAY_PORT,
        parse=_whole_number,
    )
    admission_url: str | None = _variable(
        "FAME_DIRECT_ADMISSION_URL",
        f"the sentinel to attach to, `ws://host:port{ATTACH_PATH}`; without it a node works alone",
    )
    admission_token: str | None = _variable(
        "FAME_ADMISSION_TOKEN",
        "the bearer token that a node shows when it attaches, and that a sentinel asks for",
        is_secret=True,
    )
    max_initial_attempts: int = _variable(
        "FAME_SESSION_MAX_INITIAL_ATTEMPTS",
        "how often a starting node tries to attach; 0 for no limit",
        1,
        parse=_whole_number,
    )
    security_profile: str | None = _variable(
        "FAME_SECURITY_PROFILE",
        "`open` admits every node, those of other users and machines too; no other profile is "
        "implemented",
        parse=str.lower,
        choices=("open",),
    )
    admission_profile: str | None = _variable(
        "FAME_ADMISSION_PROFILE",
        "`open`, `none` or `noop`, which mean the same here; no other profile is implemented",
        parse=str.lower,
        choices=("open", "none", "noop"),
    )
    authorization_profile: str | None = _variable(
        "FAME_AUTHORIZATION_PROFILE",
        "`none` or `noop`, which mean the same here; no other profile is implemented",
        parse=str.lower,
        choices=("none", "noop"),
    )
    allowed_origins: tuple[str, ...] | None = _variable(
        "FAME_ALLOWED_ORIGINS",
        "the web pages that may connect to a sentinel, such as `https://example.org`, with commas",
        parse=_names,
    )
    allowed_hosts: tuple[str, ...] | None = _variable(
        "FAME_ALLOWED_HOSTS",
        "the host names, besides `localhost`, by which nodes reach a sentinel, with commas",
        parse=_names,
    )
    delivery_profile: str = _variable(
        "FAME_DELIVERY_PROFILE",
        "`at-most-once`, or `at-least-once`, which stores messages until they are handled",
        "at-most-once",
        parse=str.lower,
        choices=("at-most-once", "at-least-once"),
    )
    delivery_attempts: int = _variable(
        "FAME_DELIVERY_ATTEMPTS",
        "how often an at-least-once message is tried before it is set aside",
        5,
        parse=_whole_number,
        least=1,
    )
    delivery_pause_seconds: float = _variable(
        "FAME_DELIVERY_PAUSE_SECONDS",
        "seconds before such a message is tried a second time; each later pause is twice as long",
        1.0,
        parse=_seconds,
    )
    max_running_calls: int = _variable(
        "FAME_MAX_RUNNING_CALLS",
        "how many calls run on a node at a time; one caller alone gets half of them",
        2048,
        parse=_whole_number,
        least=1,
    )
    max_open_streams: int = _variable(
        "FAME_MAX_OPEN_STREAMS",
        "how many streams are open on a node at a time; one reader alone gets half of them",
        8192,
        parse=_whole_number,
        least=1,
    )
    stop_grace_seconds: float = _variable(
        "FAME_STOP_GRACE_SECONDS",
        "seconds for which a stopping node lets calls finish",
        3.0,
        parse=_seconds,
    )
    show_errors: str = _variable(
        "FAME_SHOW_ERRORS",
        "what callers learn of an exception of an operation: `message`, its type and message, or "
        "`type`, only its type",
        "message",
        parse=str.lower,
        choices=("message", "type"),
    )
    show_envelopes: bool = _variable(
        "FAME_SHOW_ENVELOPES", "whether to log every envelope", default=False, parse=_flag
    )
    log_level: str = _variable(
        "FAME_LOG_LEVEL",
        "`debug`, `info`, `warning`, `error` or `critical`",
        "info",
        parse=str.lower,
        choices=("debug", "info", "warning", "error", "critical"),
    )

    is_sentinel: bool = False
    """Whether the node listens for others. `Sentinel` does in any case."""
    requested_logicals: tuple[str, ...] = ()
    """Hosts whose names the node shares with others: with `*.fame.fabric`, `math@fame.fabric` is
    served as a member of the pool `math@*.fame.fabric`."""

    def __post_init__(self) -> None:
        _check(self)
        for variable, port in (
            ("FAME_LISTENER_PORT", self.listener_port),
            ("FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT", self.gateway_port),
        ):
            if port > HIGHEST_PORT:
                raise SettingsError(
                    f"{variable} is {port}.", remedy=f"a number from 0 to {HIGHEST_PORT}"
                )
        if self.admission_url is not None:
            _check_url(self.admission_url)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the variables of `environ` (default: this process's environment).

        Raises:
            SettingsError: A value cannot be understood; the message names its variable.
        """
        source = os.environ if environ is None else environ
        storage = StorageSettings(**_values(StorageSettings, source))
        return cls(storage=storage, **_values(cls, source))


@contextmanager
def secrets_taken_from(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Remove the secrets from `environ` within the block; child processes then do not inherit them.

    Agents are served within such a block. Read the settings before it. Children inherit the names
    of what was taken, so that one that lacks a secret can say why.

    >>> environ = {"FAME_STORAGE_MASTER_KEY": "a secret", "FAME_LOG_LEVEL": "debug"}
    >>> with secrets_taken_from(environ):
    ...     print(environ)
    {'FAME_LOG_LEVEL': 'debug', 'STRONGROOM_TOOK': 'FAME_STORAGE_MASTER_KEY'}
    """
    taken = {name: environ.pop(name) for name in SECRETS if name in environ}
    inherited = environ.get(TOOK, "")
    names = {*taken, *filter(None, inherited.split(","))}
    if names:
        environ[TOOK] = ",".join(sorted(names))
    try:
        yield
    finally:
        environ.pop(TOOK, None)
        environ.update(taken | ({TOOK: inherited} if inherited else {}))


def was_taken(name: str) -> bool:
    """Whether a node took this secret out of the environment that this process inherited."""
    return name in os.environ.get(TOOK, "").split(",")


def variables() -> list[Variable]:
    """Every variable, in the order in which docs/settings.md lists them."""
    return [variable for cls in (StorageSettings, Settings) for _, variable in _variables_of(cls)]


def _variables_of(cls: type[Any]) -> list[tuple[str, Variable]]:
    settings: tuple[Field[Any], ...] = fields(cls)
    return [(each.name, each.metadata["variable"]) for each in settings if each.metadata]


def _values(cls: type[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        setting: _parsed(variable, text)
        for setting, variable in _variables_of(cls)
        if (text := environ.get(variable.name))  # empty is unset, as in ${NAME:-default}
    }


def _check(settings: StorageSettings | Settings) -> None:
    """Refuse values that no variable could have given."""
    for setting, variable in _variables_of(type(settings)):
        value = getattr(settings, setting)
        if variable.choices and value not in {None, *variable.choices}:
            raise _invalid(variable, value, ", ".join(variable.choices))
        if isinstance(value, int | float) and not value >= variable.least:  # nor NaN
            raise _invalid(variable, value, f"a number that is not less than {variable.least}")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"ws", "wss"} and parts.hostname and parts.path.strip("/")
        _ = parts.port  # raises if it is not a port
    except ValueError:
        is_usable = False
    if not is_usable:
        raise SettingsError(
            f"FAME_DIRECT_ADMISSION_URL is {url!r}.",
            remedy=f"ws://HOST:{DEFAULT_PORT}{ATTACH_PATH}",
        )


def _parsed(variable: Variable, text: str) -> Any:
    try:
        return variable.parse(text)
    except ValueError as error:
        raise _invalid(variable, text, str(error)) from None


def _invalid(variable: Variable, value: object, remedy: str) -> SettingsError:
    return SettingsError(f"{variable.name} is {value!r}.", remedy=remedy)


SECRETS = frozenset(variable.name for variable in variables() if variable.is_secret)
"""The names of the variables that child processes must not inherit."""
