"""Commands on keys and the audit log. They need a provider that has a keystore."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator
from typing import Any

from strongroom.admin.command import Administered, Command, OnProgress, utc, with_progress
from strongroom.disk.header import PAGE_SIZE
from strongroom.errors import NotSupported
from strongroom.keys.keystore import DataKey
from strongroom.keys.master import MasterKey
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.provider import SqliteProvider


async def provider_with_keystore(node: Administered, *, writing: bool = False) -> SqliteProvider:
    """The node's provider. `writing` says whether the command changes anything.

    Raises:
        NotSupported: It has no keystore.
    """
    provider = await node.provider(writing=writing)
    if not isinstance(provider, SqliteProvider):
        raise NotSupported(
            f"{type(provider).__name__} has no keystore.",
            remedy="FAME_STORAGE_PROFILE=encrypted-sqlite",
        )
    return provider


@Command
async def rotate_master(node: Administered, *, master_key: str) -> AsyncGenerator[Any, None]:
    """Encrypt the keystore under a new master key."""
    provider = await provider_with_keystore(node, writing=True)
    master = await asyncio.to_thread(MasterKey, master_key)
    await provider.change_master(master)
    yield {"fingerprint": master.fingerprint, "generation": provider.files.keystore.generation}


@Command
def rotate_data(
    node: Administered, *, namespaces: list[str] | None = None
) -> AsyncGenerator[Any, None]:
    """Give namespaces new data keys. None: those that a rotation left undone, or else all."""
    return with_progress(functools.partial(_rotate_data, node, namespaces))


async def _rotate_data(
    node: Administered, namespaces: list[str] | None, report: OnProgress
) -> list[dict[str, str]]:
    provider = await provider_with_keystore(node, writing=True)
    rotated = await provider.rotate(namespaces, report)
    entries = provider.files.keystore.entries
    return [{"namespace": name, "key": entries[name].key.id} for name in rotated]


@Command
async def status(node: Administered) -> AsyncGenerator[Any, None]:
    """Count the data under each key in use, and list the retired keys."""
    provider = await provider_with_keystore(node)
    keystore = provider.files.keystore
    for namespace, entry in sorted(keystore.entries.items()):
        store = await provider.open(namespace)
        head = await store.connections.run_on_writer(tables.head)
        for key in entry.keys:
            if key.file_id == head.file_id:
                size = provider.files.path(namespace).stat().st_size
                yield _key(namespace, key, entry.state.value, await store.count(), size)
            else:
                yield _key(namespace, key, "next")
    for retired in keystore.retired:
        yield _key(retired.namespace, retired.key, "retired")


def _key(
    namespace: str, key: DataKey, state: str, records: int = 0, size: int = 0
) -> dict[str, Any]:
    found = {"namespace": namespace, "key": key.id, "state": state, "created": utc(key.created)}
    return {**found, "records": records, "bytes": size, "pages": size // PAGE_SIZE}


@Command
async def show_audit(node: Administered) -> AsyncGenerator[Any, None]:
    """Show the lines of the audit log, oldest first."""
    for line in await (await provider_with_keystore(node)).audit():
        shown = {"number": line.number, "time": utc(line.time), "event": line.event}
        yield {**shown, "namespace": line.namespace, "detail": line.detail}


@Command
async def verify_audit(node: Administered) -> AsyncGenerator[Any, None]:
    """Check that no line of the audit log is missing or was changed, and count the lines."""
    yield {"lines": await (await provider_with_keystore(node)).verify_audit()}
