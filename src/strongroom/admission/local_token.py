"""A token for the nodes of one user, where the system does not say whose a connection is.

The sentinel makes it at each start, in a file that only its user can read; nodes find it there.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from strongroom.errors import SettingsError


def make_token(port: int) -> str:
    """Make the token of the sentinel that listens on `port`.

    Raises:
        SettingsError: The file cannot be written.
    """
    path, token = _file(port), secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
    except OSError as error:
        raise SettingsError(
            f"The token for this user's nodes cannot be kept in {path}: {error.strerror}.",
            remedy="FAME_ADMISSION_TOKEN=..., for the sentinel and its nodes",
        ) from error
    return token


def forget_token(port: int) -> None:
    """Remove the token of the sentinel that listened on `port`."""
    _file(port).unlink(missing_ok=True)


def find_token(url: str) -> str | None:
    """The token of this user's sentinel at `url`; None if it made none."""
    parts = urlsplit(url)
    if parts.port is None or not is_loopback(parts.hostname or ""):
        return None
    try:
        with _file(parts.port).open() as file:
            kept = os.fstat(file.fileno())
            is_ours = kept.st_uid == os.geteuid() and not kept.st_mode & 0o077
            return file.read() if is_ours else None
    except OSError:
        return None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, and nobody else can reach it there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file(port: int) -> Path:
    return Path.home() / ".strongroom" / f"sentinel-{port}.token"
