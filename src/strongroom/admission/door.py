"""Who may connect to a sentinel: checked before there is a link."""

from __future__ import annotations

import hmac
import ipaddress
import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from strongroom.settings import Settings

Address = tuple[str, int]
"""An IP address and a port."""


def refusal_of_request(headers: Mapping[str, str], settings: Settings) -> HTTPStatus | None:
    """Why an HTTP request is refused; None if it is welcome.

    A web page cannot choose its `Origin`, and a browser sends one with each WebSocket. A page whose
    name was pointed at this machine (DNS rebinding) sends that name as `Host`.
    """
    origin = headers.get("Origin")
    if origin is not None and origin not in (settings.allowed_origins or ()):
        return HTTPStatus.FORBIDDEN
    host = headers.get("Host")  # every browser sends one
    if host is not None and not _is_our_host(host, settings):
        return HTTPStatus.FORBIDDEN
    return None


def has_token(token: str | None, settings: Settings) -> bool:
    """Whether a node offers the token that the sentinel asks for, if it asks for one."""
    wanted = settings.admission_token
    return wanted is None or hmac.compare_digest(wanted.encode(), (token or "").encode())


def _is_our_host(host: str, settings: Settings) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    if name in {"localhost", settings.listener_host.lower(), *(settings.allowed_hosts or ())}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True  # only a name can be pointed at another machine


def is_own_process(peer: Address, here: Address) -> bool:
    """Whether the process at the other end of a loopback connection is this user's, or root's.

    On Linux the kernel says whose a socket is, in /proc/net/tcp and tcp6 (proc(5)). Elsewhere this
    cannot be found out, and is taken to be so.
    """
    if sys.platform != "linux" or not ipaddress.ip_address(peer[0]).is_loopback:
        return True
    return _owner(peer, here) in {0, os.geteuid()}


def _owner(local: Address, remote: Address) -> int | None:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        wide = table.name.endswith("6")
        ends = {(_kernel_form(local, wide=wide), _kernel_form(remote, wide=wide))}
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if (fields[1], fields[2]) in ends:
                return int(fields[7])
    return None


def _kernel_form(address: Address, *, wide: bool) -> str:
    """An address as the kernel prints it: each 32-bit word in the machine's byte order."""
    parsed = ipaddress.ip_address(address[0])
    if wide and parsed.version == 4:  # noqa: PLR2004 - IPv4 in an IPv6 socket
        parsed = ipaddress.IPv6Address(f"::ffff:{parsed}")
    packed = parsed.packed
    words = [packed[start : start + 4] for start in range(0, len(packed), 4)]
    text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{text}:{address[1]:04X}"
