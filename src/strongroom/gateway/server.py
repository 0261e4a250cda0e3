"""Runs the gateway's HTTP server beside a node."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from strongroom.admission.door import admits_all, system_names_owners
from strongroom.admission.handshake import check_may_listen
from strongroom.errors import ListenFailed, SettingsError

if TYPE_CHECKING:
    from strongroom.nodes.node import Node
    from strongroom.settings import Settings

MAX_CONNECTIONS = 512
"""Connections at a time; one more is answered with 503."""
IDLE_SECONDS = 30
"""Seconds for which a connection without a request stays open."""

log = logging.getLogger(__name__)


@asynccontextmanager
async def serving_http(node: Node) -> AsyncIterator[int]:
    """Serve the gateway of a started node within the block. Gives the port.

    >>> async with Fabric() as fabric, serving_http(fabric) as port:
    ...     print(f"curl http://127.0.0.1:{port}/fame/v1/gateway/health")

    Raises:
        SettingsError: Starlette and uvicorn are not installed, or anyone could call.
        ListenFailed: The port is taken, or the host is not one of this machine.
    """
    settings = node.settings
    _check(settings)
    try:
        import uvicorn  # noqa: PLC0415 - an extra

        from strongroom.gateway.app import gateway_app  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            f"The HTTP gateway needs {error.name}, which is not installed.",
            remedy="pip install 'strongroom[gateway]'",
        ) from None

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are the node's, or the program's

    config = uvicorn.Config(
        gateway_app(node),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.stop_grace_seconds)),
    )
    server = Server(config)
    with _listening(settings.listener_host, settings.gateway_port) as listening:
        port: int = listening.getsockname()[1]
        running = asyncio.create_task(server.serve([listening]), name=f"gateway on port {port}")
        log.info("%s answers HTTP on %s port %d", node.path, settings.listener_host, port)
        try:
            yield port
        finally:
            server.should_exit = True
            await asyncio.wait([running])


def _check(settings: Settings) -> None:
    check_may_listen(settings)
    if not (admits_all(settings) or system_names_owners()):
        raise SettingsError(
            "This system does not say whose process calls the HTTP gateway.",
            remedy="FAME_ADMISSION_TOKEN=...",
        )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ListenFailed(
            f"The HTTP gateway cannot listen on {host} port {port}: {error.strerror or error}.",
            remedy="another FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT, or stop what uses this one",
        ) from error
