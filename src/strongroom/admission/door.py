"""Who may connect to a sentinel: checked before there is a link."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from http import HTTPStatus

from strongroom.settings import Settings

Address = tuple[str, int]
"""An IP address and a port."""

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUESTED = 1
_ANY = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI2s2s16s16sIII")
_OWNER = struct.Struct("=I")
_OWNER_OFFSET = 64
"""Where the user is in `struct inet_diag_msg`."""


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
    return wanted is None or is_same_token(token, wanted)


def admits_all(settings: Settings) -> bool:
    """Whether processes of other users come in, too: with the token, or by the profile `open`."""
    return bool(settings.admission_token or settings.security_profile == "open")


def is_same_token(token: str | None, wanted: str) -> bool:
    """Compare tokens, in a time that tells nothing about where they differ."""
    return hmac.compare_digest(wanted.encode(), (token or "").encode())


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

    Ask `system_names_owners` first.
    """
    return _owner(peer, here) in {0, os.geteuid()}


def system_names_owners() -> bool:
    """Whether the system says whose process is at the other end of a connection: Linux does."""
    try:
        _ask_kernel().close()
    except (AttributeError, OSError):
        return False
    return True


def _ask_kernel() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)


def _owner(local: Address, remote: Address) -> int | None:
    """The user whose socket has these two ends, by sock_diag(7).

    /proc/net/tcp says the same, but among a thousand connections it takes 7 ms to read.
    """
    ends = [ipaddress.ip_address(address[0]) for address in (local, remote)]
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[ends[0].version]
    ports = [address[1].to_bytes(2) for address in (local, remote)]
    socket_id = (*ports, *(end.packed for end in ends), 0, _ANY, _ANY)
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ANY, *socket_id)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUESTED, 0, 0)
    with _ask_kernel() as kernel:
        kernel.send(header + request)
        answer = kernel.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:  # there is no such socket
        return None
    owner: int = _OWNER.unpack_from(answer, _HEADER.size + _OWNER_OFFSET)[0]
    return owner
