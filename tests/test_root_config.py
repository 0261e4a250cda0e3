"""A node's configuration in Naylence's form, from each of its sources."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from strongroom import root_config
from strongroom.errors import SettingsError
from strongroom.root_config import KEYS, node_settings

GATEWAY = "AgentHttpGatewayListener"
NODE: dict[str, Any] = {
    "node": {
        "type": "Node",
        "id": "${env:FAME_NODE_ID:}",
        "public_url": "${env:FAME_PUBLIC_URL:}",
        "requested_logicals": ["fame.fabric", "*.pool.fabric"],
        "security": {"type": "SecurityProfile", "profile": "${env:FAME_SECURITY_PROFILE:open}"},
        "admission": {"type": "AdmissionProfile", "profile": "open"},
        "identity_policy": {"type": "NodeIdentityPolicyProfile", "profile": "default"},
        "storage": {"type": "StorageProfile", "profile": "${env:FAME_STORAGE_PROFILE:memory}"},
        "delivery": {"type": "DeliveryProfile", "profile": "at-least-once"},
    }
}
SENTINEL = {
    "node": {
        "type": "Sentinel",
        "listeners": [
            {
                "type": "HttpListener",
                "port": "${env:FAME_LISTENER_HTTP_PORT:${env:FAME_LISTENER_PORT:8123}}",
                "enabled": "${env:FAME_LISTENER_HTTP_ENABLED:true}",
            },
            {"type": GATEWAY, "port": 9, "enabled": False},
        ],
    }
}


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(root_config, "FILES", [Path("fame-config.json"), Path("fame-config.yaml")])


def test_what_it_says_counts_and_the_rest_comes_from_the_environment() -> None:
    environ = {"FAME_NODE_ID": "here", "FAME_DELIVERY_PROFILE": "at-most-once"}
    settings = node_settings(NODE, {**environ, "FAME_LOG_LEVEL": "debug"})
    assert settings.node_id == "here"
    assert settings.delivery_profile == "at-least-once"
    assert settings.log_level == "debug"
    assert settings.requested_logicals == ("fame.fabric", "*.pool.fabric")
    assert not settings.is_sentinel


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({}, 8123),
        ({"FAME_LISTENER_PORT": "8124"}, 8124),
        ({"FAME_LISTENER_HTTP_PORT": "8125", "FAME_LISTENER_PORT": "8124"}, 8125),
        ({"FAME_LISTENER_PORT": ""}, 8123),
    ],
)
def test_expressions_can_be_nested(environ: dict[str, str], port: int) -> None:
    settings = node_settings(SENTINEL, environ)
    assert settings.is_sentinel
    assert settings.listener_port == port


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ({"securty": {"profile": "open"}}, "node.securty is not .* Try: node.security"),
        ({"security": {"profile": "overlay"}}, "FAME_SECURITY_PROFILE is 'overlay'"),
        ({"security": {"type": "DefaultSecurityManager"}}, "node.security.type is"),
        ({"security": {"authorizer": {"type": "X"}}}, "node.security.authorizer is not"),
        ({"admission": {"profile": "welcome"}}, "FAME_ADMISSION_PROFILE is 'welcome'"),
        ({"identity_policy": {"profile": "token-subject"}}, "node.identity_policy.profile is"),
        ({"telemetry": {"type": "Trace"}}, "node.telemetry is not a key that we know"),
        ({"telemetry": {}}, "node.telemetry is not a key that we know"),
        ({"security": "open"}, "node.security is 'open'. Try: node.security.profile"),
        ({"peers": [{"direct_url": "ws://x/y"}]}, "node.peers is not"),
        ({"id": "${env:MISSING}"}, "node.id needs MISSING"),
        ({"id": "${config:x}"}, r"node.id is '\$\{config:x\}'"),
        ({"listeners": [{"port": "many"}]}, "FAME_LISTENER_PORT is 'many'"),
        ({"listeners": [{"port": 1}, {"port": 2}]}, r"node.listeners\[\].port is 1 and 2"),
        ({"listeners": [{"type": GATEWAY, "prt": 1}]}, r"\[gateway\].prt is .* Try: .*\.port"),
        ({"listeners": [{"enabled": False}]}, "None of node.listeners is enabled"),
        ({"type": "Sentinell"}, "node.type is 'Sentinell'. Try: Node or Sentinel"),
    ],
)
def test_what_is_not_known_is_an_error_with_its_path(node: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        node_settings({"node": node}, {})


def test_the_gateway_s_listener_has_a_port_of_its_own() -> None:
    listeners = [{"type": "WebSocketListener", "port": 1}, {"type": GATEWAY, "port": 2}]
    settings = node_settings({"node": {"type": "Sentinel", "listeners": listeners}}, {})
    assert (settings.listener_port, settings.gateway, settings.gateway_port) == (1, True, 2)
    assert not node_settings(SENTINEL, {}).gateway


@pytest.mark.parametrize("name", ["fame-config.json", "fame-config.yaml", "elsewhere.json"])
def test_it_is_found_in_files(name: str) -> None:
    Path(name).write_text(json.dumps(NODE))  # JSON is YAML too
    environ = {"FAME_CONFIG": name} if name == "elsewhere.json" else {}
    assert node_settings(None, environ).delivery_profile == "at-least-once"
    assert node_settings(Path(name), {}).delivery_profile == "at-least-once"


@pytest.mark.parametrize(
    "text", [json.dumps(NODE), "node:\n  delivery:\n    profile: at-least-once\n"]
)
def test_it_can_be_the_text_itself(text: str) -> None:
    assert node_settings(None, {"FAME_CONFIG": text}).delivery_profile == "at-least-once"


@pytest.mark.parametrize(
    "text", ["{", "nowhere.json", "[1]\n", "a: [\n", "node: {type: Node, other: {}}x\n"]
)
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(SettingsError):
        node_settings(None, {"FAME_CONFIG": text})


def test_yaml_without_pyyaml_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SettingsError, match=r"strongroom\[yaml\]"):
        node_settings("node:\n  type: Node\n", {})


def test_the_page_of_settings_lists_every_key() -> None:
    page = (Path(root_config.__file__).parents[2] / "docs/settings.md").read_text()
    assert [key for key in sorted(KEYS) if f"`{key}`" not in page] == []
