"""`strongroom delivery`: messages that at-least-once delivery has set aside."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import typer

from strongroom.admin import delivery
from strongroom.cli.output import Directory, Json, UsageError, request
from strongroom.cli.output import show as print_items

app = typer.Typer(
    help="Show and retry messages that could not be handled or delivered.", no_args_is_help=True
)

Messages = Annotated[list[str] | None, typer.Argument(help="The ids of messages.")]
All = Annotated[bool, typer.Option("--all", help="All messages.")]


@app.command()
def ls(directory: Directory = None, as_json: Json = False) -> None:
    """List the messages that were set aside, with the last reason of each.

    \b
    strongroom delivery ls --directory data
    """
    asyncio.run(print_items(request(directory, delivery.ls), as_json=as_json))


@app.command()
def show(
    message: Annotated[str, typer.Argument(help="The message's id.")],
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Show a message: each reason, and its envelope. It may hold secrets of the user.

    \b
    strongroom delivery show 2a7c61c3a5a34be1a5a4b0a5ad3c5c0f
    """
    items = request(directory, delivery.show, message=message)
    asyncio.run(print_items(items, as_json=as_json, text=_indented))


@app.command()
def retry(
    messages: Messages = None,
    every: All = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Try messages again: at once if the node is running, else after its next start.

    \b
    strongroom delivery retry --all
    """
    items = request(directory, delivery.retry, messages=_named(messages, every=every))
    said = "Message {id} will be tried again.".format_map
    asyncio.run(print_items(items, as_json=as_json, text=said))


@app.command()
def drop(
    messages: Messages = None,
    every: All = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Delete messages that were set aside.

    \b
    strongroom delivery drop 2a7c61c3a5a34be1a5a4b0a5ad3c5c0f
    """
    items = request(directory, delivery.drop, messages=_named(messages, every=every))
    asyncio.run(print_items(items, as_json=as_json, text="Message {id} is deleted.".format_map))


def _named(messages: list[str] | None, *, every: bool) -> list[str]:
    if bool(messages) == every:
        raise UsageError(
            "Name messages, or all of them.", remedy="an id of delivery ls, or --all", hint="ID"
        )
    return messages or []


def _indented(item: object) -> str:
    return msgspec.json.format(msgspec.json.encode(item)).decode()
