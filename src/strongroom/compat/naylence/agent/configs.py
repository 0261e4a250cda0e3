"""`naylence.agent.configs`: configurations for `root_config=`, which leave all to the variables."""

from __future__ import annotations

from typing import Any


def _node(admission: str, **more: Any) -> dict[str, Any]:
    def profile(kind: str, default: str) -> dict[str, str]:
        return {
            "type": f"{kind.title()}Profile",
            "profile": f"${{env:FAME_{kind}_PROFILE:{default}}}",
        }

    return {
        "node": {
            **more,
            "security": profile("SECURITY", ""),
            "admission": profile("ADMISSION", admission),
            "storage": profile("STORAGE", "memory"),
            "delivery": profile("DELIVERY", "at-most-once"),
        }
    }


CLIENT_CONFIG = _node("open")
NODE_CONFIG = _node("open", type="Node", id="${env:FAME_NODE_ID:}")
SENTINEL_CONFIG = _node(
    "none",
    type="Sentinel",
    id="${env:FAME_NODE_ID:}",
    listeners=[{"type": "WebSocketListener", "port": "${env:FAME_LISTENER_PORT:8000}"}],
)
