"""The gateway's description of itself: OpenAPI, and a page for people."""

from __future__ import annotations

import html
import json
from typing import Any

import msgspec

from strongroom.settings import DEFAULT_GATEWAY_PORT, GATEWAY_PATH
from strongroom.version import __version__

_ABOUT = {
    "rpc": "Call an operation. With `Accept: text/event-stream`, each item of a stream is an event;"
    " the last event is `end`, or `error`.",
    "messages": "Send a plain message: the agent gets `{type, payload}`.",
}
_EXAMPLES = {
    "rpc": {
        "targetAddr": "storage@fame.fabric",
        "method": "store_value",
        "params": {"key": "a", "value": "b"},
    },
    "messages": {"targetAddr": "storage@fame.fabric", "type": "note", "payload": {"text": "hello"}},
}
_ANSWERS = {"rpc": {"200": "`{ok, result}`"}, "messages": {"202": "The message is on its way."}}
_REFUSALS = {
    "400": "The request, or an argument, is wrong.",
    "401": "The token is missing or wrong.",
    "404": "There is no such agent or operation.",
    "429": "Too many calls are running; try again later.",
    "500": "The operation failed.",
    "504": "No answer came in time; the operation may have run.",
}


def openapi(*bodies: type[msgspec.Struct]) -> dict[str, Any]:
    """The gateway's OpenAPI description (https://spec.openapis.org/oas/v3.1.0).

    Args:
        bodies: The model of the body of each path that is posted to.
    """
    schemas, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {
        f"{GATEWAY_PATH}/{name}": {"post": _posted(name, schema)}
        for name, schema in zip(_ABOUT, schemas, strict=True)
    }
    health = {"summary": "Whether the gateway is up.", "responses": _responses({"200": "It is."})}
    paths[f"{GATEWAY_PATH}/health"] = {"get": health}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Strongroom gateway", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _posted(name: str, schema: Any) -> dict[str, Any]:
    body = {"schema": schema, "example": _EXAMPLES[name]}
    return {
        "summary": _ABOUT[name],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": _responses(_ANSWERS[name] | _REFUSALS),
    }


def _responses(meanings: dict[str, str]) -> dict[str, Any]:
    return {status: {"description": meaning} for status, meaning in meanings.items()}


def page(described: dict[str, Any]) -> str:
    """The same as a page, which loads nothing from elsewhere."""
    parts = ["<!doctype html><meta charset=utf-8><title>Strongroom gateway</title>"]
    parts.append("<h1>Strongroom gateway</h1><p><a href=/openapi.json>openapi.json</a></p>")
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2>{method.upper()} {path}</h2><p>{html.escape(about['summary'])}</p>")
            parts += [f"<pre>{html.escape(_command(path, about))}</pre><ul>"]
            for status, answer in about["responses"].items():
                parts.append(f"<li>{status}: {html.escape(answer['description'])}</li>")
            parts.append("</ul>")
    return "".join(parts)


def _command(path: str, about: dict[str, Any]) -> str:
    if "requestBody" not in about:
        return f"curl http://127.0.0.1:{DEFAULT_GATEWAY_PORT}{path}"
    data = json.dumps(about["requestBody"]["content"]["application/json"]["example"])
    return f"curl http://127.0.0.1:{DEFAULT_GATEWAY_PORT}{path} -d '{data}'"
