"""`strongroom store`: what is kept, record by record."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from strongroom.admin.commands import Item
from strongroom.admin.socket import operate
from strongroom.cli.output import (
    Directory,
    Json,
    Namespace,
    new_file,
    show,
    storage_settings,
    write,
)
from strongroom.errors import ImportInvalid, InvalidKey
from strongroom.storage.records import MAX_VALUE_BYTES

BATCH_RECORDS = 500
BATCH_BYTES = 4 * 1024 * 1024

app = typer.Typer(help="Look at what is kept, and change it.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(help="The record's key.")]


@app.command()
def ls(directory: Directory = None, as_json: Json = False) -> None:
    """List the namespaces, with the number of their records.

    \b
    strongroom store ls
    strongroom store ls --directory data --json
    """
    columns = ["namespace", "records", "bytes"]
    asyncio.run(_show(directory, "store.ls", as_json=as_json, columns=columns))


@app.command()
def stats(namespace: Namespace, directory: Directory = None, as_json: Json = False) -> None:
    """Show a namespace's size, newest revision and data key.

    \b
    strongroom store stats notes
    """
    found = asyncio.run(_show(directory, "store.stats", as_json=as_json, namespace=namespace))
    for name, value in (found[0] if found else {}).items():
        print(f"{name:12} {value}")


@app.command()
def get(
    namespace: Namespace,
    key: Key,
    directory: Directory = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With revision, version and times.")
    ] = False,
) -> None:
    """Print the value of a record, as JSON.

    \b
    strongroom store get notes first
    strongroom store get notes first --json
    """
    asyncio.run(_get(directory, namespace, key, as_json=as_json))


@app.command()
def put(
    namespace: Namespace,
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON; - reads it from standard input.")],
    version: Annotated[
        int | None,
        typer.Option(help="The model version it is for [that of the record there, else 0]."),
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Store a record. Its expiry stays as it is.

    \b
    strongroom store put notes first '{"text": "Hello"}'
    echo '{"text": "Hello"}' | strongroom store put notes first -
    """
    text = sys.stdin.read() if value == "-" else value
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        message = f'this is no JSON: {error}. Try: \'{{"text": "Hello"}}\', in single quotes'
        raise typer.BadParameter(message, param_hint="VALUE") from None
    arguments: dict[str, Any] = {"namespace": namespace, "key": key, "text": text}
    arguments["version"] = version
    say = "{key} is stored at revision {revision}."
    asyncio.run(_show(directory, "store.put", as_json=as_json, say=say, **arguments))


@app.command()
def delete(
    namespace: Namespace,
    keys: Annotated[list[str], typer.Argument(help="The records' keys.")],
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Delete records.

    \b
    strongroom store delete notes first second
    """
    found = asyncio.run(
        _show(directory, "store.delete", as_json=as_json, namespace=namespace, keys=keys)
    )
    for item in found:
        print(f"{item['key']} {'is deleted' if item['deleted'] else 'was not there'}.")


@app.command()
def scan(
    namespace: Namespace,
    prefix: Annotated[str, typer.Option(help="What the keys begin with.")] = "",
    after: Annotated[str | None, typer.Option(help="Go on behind this key.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From the last key.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Without the values.")] = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Print records in the order of their keys, however many there are.

    \b
    strongroom store scan notes --prefix 2026- --limit 10
    strongroom store scan notes --json | jq .value
    """
    arguments = {"prefix": prefix, "after": after, "limit": limit, "reverse": reverse}
    asyncio.run(
        _stream(
            directory,
            "store.scan",
            as_json=as_json,
            namespace=namespace,
            values=not keys_only,
            **arguments,
        )
    )


@app.command()
def watch(
    namespace: Namespace,
    prefix: Annotated[str, typer.Option(help="What the keys begin with.")] = "",
    after: Annotated[int | None, typer.Option(help="Go on behind this revision.")] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Print each change as it comes, until it is interrupted.

    \b
    strongroom store watch notes
    strongroom store watch notes --after 0 --json
    """
    arguments = {"namespace": namespace, "prefix": prefix, "after": after}
    asyncio.run(_stream(directory, "store.watch", as_json=as_json, **arguments))


@app.command()
def export(
    namespace: Namespace,
    out: Annotated[Path | None, typer.Option(help="A new file [standard output].")] = None,
    directory: Directory = None,
) -> None:
    """Write all records as of one moment, one JSON object on each line, in clear.

    \b
    strongroom store export notes --out notes.jsonl
    strongroom store export notes | gpg -c > notes.jsonl.gpg
    """
    asyncio.run(_export(directory, namespace, out))


@app.command(name="import")
def import_(
    namespace: Namespace,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What export wrote.")],
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Store the records of a file. All lines are checked before the first is stored.

    \b
    strongroom store import notes notes.jsonl
    """
    with file.open("rb") as lines:
        count = sum(1 for _ in _items(file, lines))
    stored, replaced = asyncio.run(_import(directory, namespace, file))
    if as_json:
        write(msgspec.json.encode({"lines": count, "stored": stored, "replaced": replaced}))
    else:
        print(f"{stored} records are stored in {namespace}; {replaced} of them replaced others.")


@app.command()
def drop(
    namespace: Namespace,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Delete a namespace: its data key first, then its file.

    Copies of the file in backups cannot be read any more with the keystore from now on. Whoever
    kept an older keystore and its master key can still read them.

    \b
    strongroom store drop notes
    strongroom store drop notes --yes
    """
    if not yes:
        print(
            f"All records of {namespace} go, and so does the key of its file: its copies in "
            "backups cannot be read any more, except with an older keystore and its master key."
        )
        typer.confirm(f"Drop {namespace}?", abort=True)
    say = "{namespace} is dropped, and its data key is destroyed."
    asyncio.run(_show(directory, "store.drop", as_json=as_json, say=say, namespace=namespace))


async def _show(
    directory: Path | None,
    command: str,
    *,
    as_json: bool,
    columns: list[str] | None = None,
    say: str = "",
    **arguments: Any,
) -> list[Any]:
    async with operate(storage_settings(directory)) as ask:
        items = ask(command, **arguments)
        return await show(items, as_json=as_json, columns=columns or (), say=say)


async def _get(directory: Path | None, namespace: str, key: str, *, as_json: bool) -> None:
    async with operate(storage_settings(directory)) as ask:
        async for item in ask("store.get", namespace=namespace, key=key):
            record = msgspec.json.decode(item, type=Item)
            write(item if as_json else bytes(record.value) or (record.base64 or "").encode())


async def _stream(directory: Path | None, command: str, *, as_json: bool, **arguments: Any) -> None:
    async with operate(storage_settings(directory)) as ask:
        async for item in ask(command, **arguments):
            write(item if as_json else _line(item))


def _line(item: bytes) -> bytes:
    """A record for people: key and value; or that it is deleted."""
    record = msgspec.json.decode(item, type=Item)
    key = record.key.encode()
    if b'"deleted":true' in item and not record.value:
        return key + b"\t(deleted)"
    value = bytes(record.value) or (record.base64 or "").encode()
    return key + b"\t" + value if value else key


async def _export(directory: Path | None, namespace: str, out: Path | None) -> None:
    async with operate(storage_settings(directory)) as ask:
        items = ask("store.export", namespace=namespace)
        if out is None:
            async for item in items:
                write(item)
            return
        count = 0
        with new_file(out) as file:
            async for item in items:
                file.write(item + b"\n")
                count += 1
        print(f"{count} records are in {out}, in clear.", file=sys.stderr)


async def _import(directory: Path | None, namespace: str, file: Path) -> tuple[int, int]:
    stored = replaced = 0
    async with operate(storage_settings(directory)) as ask:
        with file.open("rb") as lines:
            for batch in _batches(_items(file, lines)):
                async for item in ask("store.import", namespace=namespace, records=batch):
                    done = msgspec.json.decode(item)
                    stored += done["stored"]
                    replaced += done["replaced"]
    return stored, replaced


def _batches(items: Iterator[tuple[int, Item]]) -> Iterator[list[Item]]:
    batch: dict[str, Item] = {}
    size = 0
    for length, item in items:
        if batch and (
            len(batch) == BATCH_RECORDS or size + length > BATCH_BYTES or item.key in batch
        ):
            yield list(batch.values())
            batch, size = {}, 0
        batch[item.key] = item
        size += length
    if batch:
        yield list(batch.values())


def _items(file: Path, lines: BinaryIO) -> Iterator[tuple[int, Item]]:
    """The records of an export, with the length of their lines.

    Raises:
        ImportInvalid: A line cannot be read; the message says which.
    """
    for number, line in enumerate(lines, start=1):
        try:
            item = msgspec.json.decode(line, type=Item)
            value = item.write().value
        except (ValueError, InvalidKey) as error:
            raise ImportInvalid(
                f"Line {number} of {file} cannot be read: {error}. Nothing was stored.",
                remedy="a file that strongroom store export wrote",
            ) from None
        if len(value or b"") > MAX_VALUE_BYTES:
            raise ImportInvalid(f"Line {number} of {file} is too long. Nothing was stored.")
        yield len(line), item
