"""Commands on messages that at-least-once delivery has set aside: list, show, retry, drop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from strongroom.admin.command import Administered, Command
from strongroom.errors import KeyMissing, NotSupported, ProtocolError
from strongroom.messaging.rpc import read_request
from strongroom.messaging.stored import (
    DEAD_LETTERS,
    INBOX,
    OUTBOX,
    DeadLetter,
    Direction,
    ReceivedMessage,
    SentMessage,
    read_message,
)
from strongroom.storage.typed import Entry, KeyValueStore


@Command
async def ls(node: Administered) -> AsyncGenerator[Any, None]:
    """List the messages that were set aside."""
    store = await _letters(node)
    if store is None:
        return
    async for entry in store.scan():
        yield _summary(entry)


@Command
async def show(node: Administered, *, message: str) -> AsyncGenerator[Any, None]:
    """Show one of them, with each reason and its envelope."""
    [(_, entry)] = [found async for found in _chosen(node, [message])]
    text = entry.value.envelope
    try:
        envelope: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        envelope = text
    yield {**_summary(entry), "reasons": entry.value.reasons, "envelope": envelope}


@Command
async def retry(node: Administered, *, messages: list[str]) -> AsyncGenerator[Any, None]:
    """Try messages again, now or when the node starts. None named: all of them."""
    if node.node is not None and node.node.describe()["delivery"] != "at-least-once":
        raise NotSupported(
            "The node delivers at most once, so it tries no message again.",
            remedy="FAME_DELIVERY_PROFILE=at-least-once for the node",
        )
    provider = await node.provider()
    async for store, entry in _chosen(node, messages):
        letter = entry.value
        if letter.direction is Direction.SENT:
            outbox = await provider.own_store(SentMessage, OUTBOX)
            await outbox.set(entry.key, SentMessage(envelope=letter.envelope))
        else:
            inbox = await provider.own_store(ReceivedMessage, INBOX)
            await inbox.set(entry.key, ReceivedMessage(envelope=letter.envelope, attempts=0))
        await store.delete(entry.key)
        yield {"id": entry.key, "retried": True}
    if node.node is not None:
        await node.node.redeliver()


@Command
async def drop(node: Administered, *, messages: list[str]) -> AsyncGenerator[Any, None]:
    """Delete messages. None named: all of them."""
    async for store, entry in _chosen(node, messages):
        await store.delete(entry.key)
        yield {"id": entry.key, "dropped": True}


async def _letters(node: Administered) -> KeyValueStore[DeadLetter] | None:
    provider = await node.provider()
    if DEAD_LETTERS not in await provider.namespaces():
        return None
    return await provider.own_store(DeadLetter, DEAD_LETTERS)


async def _chosen(
    node: Administered, messages: list[str]
) -> AsyncIterator[tuple[KeyValueStore[DeadLetter], Entry[DeadLetter]]]:
    """The messages with these ids, or all. Nothing is yielded if one of them does not exist."""
    store = await _letters(node)
    found: list[Entry[DeadLetter]] = []
    if store is not None and not messages:
        found = [entry async for entry in store.scan()]
    for message in dict.fromkeys(messages):
        entry = None if store is None else await store.entry(message)
        if entry is None:
            raise KeyMissing(
                f"No message {message!r} was set aside.", remedy="strongroom delivery ls"
            )
        found.append(entry)
    if store is not None:
        for entry in found:
            yield store, entry


def _summary(entry: Entry[DeadLetter]) -> dict[str, Any]:
    letter = entry.value
    return {
        "id": entry.key,
        "direction": letter.direction.value,
        **_addressed(letter.envelope),
        "attempts": letter.attempts,
        "set_aside": entry.created,
        "reason": letter.reasons[-1] if letter.reasons else None,
    }


def _addressed(text: str) -> dict[str, Any]:
    """Where a message goes, and the operation that it calls; None for a plain message."""
    try:
        envelope, data = read_message(text)
    except ProtocolError:
        return {"address": None, "operation": None}
    try:
        operation = read_request(data.payload).method
    except (msgspec.MsgspecError, RecursionError):
        operation = None
    return {"address": envelope.to, "operation": operation}
