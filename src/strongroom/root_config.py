"""A node's configuration in Naylence's form: `root_config`, FAME_CONFIG, or a fame-config file.

    {"node": {"type": "Sentinel", "listeners": [{"type": "WebSocketListener", "port": 9000}],
              "storage": {"profile": "${env:FAME_STORAGE_PROFILE:memory}"}}}

Where it says something, it counts instead of the variable. Each key that we know is a line below;
any other is an error, so that nothing which was asked for is left out without a word.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strongroom.errors import SettingsError
from strongroom.settings import Settings

RootConfig = Mapping[str, Any] | str | Path | None

FILES = [
    directory / f"fame-config.{ending}"
    for directory in (Path(), Path("/etc/fame"))
    for ending in ("json", "yaml", "yml")
]

GATEWAY = "AgentHttpGatewayListener"

VARIABLES = {
    "node.id": "FAME_NODE_ID",
    "node.direct_parent_url": "FAME_DIRECT_ADMISSION_URL",
    "node.listeners[].host": "FAME_LISTENER_HOST",
    "node.listeners[].port": "FAME_LISTENER_PORT",
    "node.listeners[gateway].port": "FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT",
    "node.admission.profile": "FAME_ADMISSION_PROFILE",
    "node.delivery.profile": "FAME_DELIVERY_PROFILE",
    "node.security.profile": "FAME_SECURITY_PROFILE",
    "node.storage.profile": "FAME_STORAGE_PROFILE",
}
"""Keys that say what a variable says."""
CHOICES: dict[str, tuple[str, ...]] = {
    "node.type": ("Node", "Sentinel"),
    "node.listeners[].type": ("HttpListener", "WebSocketListener"),
    "node.listeners[].enabled": ("true", "false"),
    "node.listeners[gateway].type": (GATEWAY,),
    "node.listeners[gateway].enabled": ("true", "false"),
    "node.admission.type": ("AdmissionProfile",),
    "node.delivery.type": ("DeliveryProfile",),
    "node.identity_policy.type": ("NodeIdentityPolicyProfile",),
    "node.identity_policy.profile": ("default",),
    "node.security.type": ("SecurityProfile",),
    "node.storage.type": ("StorageProfile",),
}
"""Keys with the values that they can have here."""
KEYS = {*VARIABLES, *CHOICES, "node.requested_logicals[]", "node.public_url"}
PATHS = KEYS | {key[: dot.start()] for key in KEYS for dot in re.finditer(r"\[\w*\]|\.", key)}
"""The keys, and the objects and lists in which they are."""

_EXPRESSION = re.compile(r"\$\{env:(\w+)(?::([^${}]*))?\}")


def node_settings(
    root_config: RootConfig = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings of a node: those of its configuration, and of the environment for the rest.

    Args:
        root_config: The configuration, the path of its file, or its text. By default what
            FAME_CONFIG holds, else the first of FILES that exists.
        environ: The variables, if not those of this process.

    Raises:
        SettingsError: A key or value is not known here; the message has its path.
    """
    environ = os.environ if environ is None else environ
    found = _read(root_config, environ)
    values: dict[str, list[str]] = {}
    for path, text in _leaves(_enabled(found, environ), ""):
        value = _expanded(path, text, environ)
        _check(path, value)
        values.setdefault(path, []).append(value)
    variables = dict(environ)
    for path, given in values.items():
        if path in VARIABLES and (value := _one(path, given)):
            variables[VARIABLES[path]] = value
    if "node.listeners[gateway].type" in values:
        variables["FAME_LISTENER_AGENT_HTTP_GATEWAY_ENABLED"] = "true"
    settings = Settings.from_environment(variables)
    return dataclasses.replace(
        settings,
        is_sentinel=values.get("node.type") == ["Sentinel"],
        requested_logicals=tuple(values.get("node.requested_logicals[]", ())),
    )


# --- reading ------------------------------------------------------------------------------------


def _read(root_config: RootConfig, environ: Mapping[str, str]) -> Mapping[str, Any]:
    source: Any = root_config or environ.get("FAME_CONFIG") or _file()
    if source is None or isinstance(source, Mapping):
        return source or {}
    text, name = str(source).strip(), "FAME_CONFIG" if root_config is None else "root_config"
    if not text.startswith("{") and "\n" not in text and ": " not in text:
        name = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name} cannot be read: {error}.", remedy="its path") from None
    found = _parsed(text, name)
    if not isinstance(found, Mapping):
        raise SettingsError(f"{name} is not an object.", remedy='{"node": {...}}')
    return found


def _file() -> Path | None:
    return next((path for path in FILES if path.is_file()), None)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("{"):
            raise SettingsError(f"{name} is not JSON: {error}.", remedy="correct it") from None
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ImportError:
        raise SettingsError(
            f"{name} is YAML, and PyYAML is not installed.",
            remedy="pip install 'strongroom[yaml]', or the same as JSON",
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{name} is not YAML: {error}.", remedy="correct it") from None


def _expanded(path: str, value: Any, environ: Mapping[str, str]) -> str:
    """The value as text, with each `${env:NAME:default}` replaced, from the innermost outwards."""
    text = str(value).lower() if isinstance(value, bool) else str("" if value is None else value)
    while (found := _EXPRESSION.search(text)) is not None:
        name, default = found.groups()
        if not environ.get(name) and default is None:
            raise SettingsError(f"{path} needs {name}, which is not set.", remedy=f"set {name}")
        text = text[: found.start()] + (environ.get(name) or default) + text[found.end() :]
    if "${" in text:
        raise SettingsError(f"{path} is {text!r}.", remedy="${env:NAME:default}")
    return text


# --- checking -----------------------------------------------------------------------------------


def _enabled(config: Mapping[str, Any], environ: Mapping[str, str]) -> Mapping[str, Any]:
    """The configuration without the listeners that are not enabled."""
    node = config.get("node")
    listeners = node.get("listeners") if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or not isinstance(listeners, list):
        return config
    path = "node.listeners[].enabled"
    chosen = [
        each
        for each in listeners
        if not isinstance(each, Mapping)
        or _expanded(path, each.get("enabled", True), environ).lower() != "false"
    ]
    if listeners and not chosen:
        raise SettingsError("None of node.listeners is enabled.", remedy='"type": "Node"')
    return {**config, "node": {**node, "listeners": chosen}}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each value that is no object and no list, with the path of its key."""
    if path and path not in PATHS:
        near = difflib.get_close_matches(path, PATHS, n=1)
        known = near or sorted(key for key in PATHS if key.startswith(path.rpartition(".")[0]))
        raise SettingsError(f"{path} is not a key that we know.", remedy=" or ".join(known))
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for each in value:
            kind = "gateway" if isinstance(each, Mapping) and each.get("type") == GATEWAY else ""
            yield from _leaves(each, f"{path}[{kind}]")
    elif path in KEYS:
        yield path, value
    elif value is not None:
        known = sorted(key for key in KEYS if key.startswith(path))
        raise SettingsError(f"{path} is {value!r}.", remedy=" and ".join(known))


def _check(path: str, value: str) -> None:
    choices = CHOICES.get(path)
    if choices is not None and value not in choices:
        raise SettingsError(f"{path} is {value!r}.", remedy=" or ".join(choices))


def _one(path: str, values: list[str]) -> str:
    if len(set(values)) > 1:
        raise SettingsError(
            f"{path} is {' and '.join(sorted(set(values)))}.", remedy="the same for each listener"
        )
    return values[0]
