"""Who may join a fabric: the attach handshake of both sides, and when a sentinel may listen."""

from __future__ import annotations

from msgspec import Struct

from strongroom.admission.local_token import is_loopback
from strongroom.errors import AttachRefused, SettingsError
from strongroom.messaging.address import new_id
from strongroom.messaging.envelope import NodeAttach, NodeAttachAck
from strongroom.settings import Settings


class Membership(Struct, frozen=True):
    """A node's place under its sentinel."""

    path: str
    sentinel_id: str
    epoch: str | None


def attach_request(node_id: str) -> NodeAttach:
    """The first frame of a child."""
    return NodeAttach(
        system_id=node_id,
        instance_id=new_id(),
        origin_type="downstream",
        accepted_logicals=["*"],
    )


def membership(ack: NodeAttachAck) -> Membership:
    """What the sentinel's answer to the first frame says.

    Raises:
        AttachRefused: The sentinel refused the node.
    """
    if not ack.ok or ack.assigned_path is None:
        raise AttachRefused(f"The sentinel refused this node: {ack.reason or ack.code}.")
    return Membership(ack.assigned_path, ack.target_system_id or "", ack.routing_epoch)


def refusal(request: NodeAttach, url_id: str, own_id: str) -> str | None:
    """Why a child that connected with `url_id` is refused; None if it is welcome."""
    if request.system_id != url_id:
        return f"The id in the URL is {url_id!r}, and the node calls itself {request.system_id!r}"
    if request.system_id == own_id:
        return "The id is the sentinel's own"
    return None


def check_may_listen(settings: Settings) -> None:
    """Refuse to listen to other machines without a token, unless FAME_SECURITY_PROFILE is `open`.

    Raises:
        SettingsError: Anyone on the network could join.
    """
    if (
        settings.admission_token
        or settings.security_profile == "open"
        or is_loopback(settings.listener_host)
    ):
        return
    raise SettingsError(
        f"FAME_LISTENER_HOST is {settings.listener_host!r}, where anyone could join this fabric.",
        remedy="FAME_ADMISSION_TOKEN=..., or FAME_SECURITY_PROFILE=open to allow that",
    )
