"""`strongroom store`: the records in a data directory."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer

from strongroom.admin import records
from strongroom.admin.command import Progress
from strongroom.admin.records import EMPTY, MAX_VERSION, ExportedRecord
from strongroom.admin.socket import checked_directory, connect
from strongroom.cli import recovery
from strongroom.cli.output import (
    Directory,
    Json,
    Namespace,
    UsageError,
    new_file,
    read_input,
    request,
    say,
    show,
    standard_input,
    storage_settings,
    terminal,
)
from strongroom.errors import ImportInvalid, InvalidKey, StorageError
from strongroom.nodes.identity import NodeStores
from strongroom.printable import printable
from strongroom.settings import StorageSettings
from strongroom.storage.provider import open_provider
from strongroom.storage.records import MAX_VALUE_BYTES
from strongroom.storage.sqlite.provider import SqliteProvider

MAX_NUMBER = 2**63 - 1
BATCH_RECORDS = 500
BATCH_BYTES = 4 * 1024 * 1024

app = typer.Typer(help="Show and change the records that a node stores.", no_args_is_help=True)
app.command()(recovery.accept)
app.command()(recovery.forget)

Key = Annotated[str, typer.Argument(help="The record's key.")]


@app.command()
def ls(directory: Directory = None, as_json: Json = False) -> None:
    """List the namespaces, with their number of records and their size.

    \b
    strongroom store ls
    strongroom store ls --directory data --json
    """
    asyncio.run(show(request(directory, records.ls), as_json=as_json))


@app.command()
def stats(namespace: Namespace, directory: Directory = None, as_json: Json = False) -> None:
    """Show a namespace's size, newest revision and data key.

    \b
    strongroom store stats notes
    """
    items = request(directory, records.stats, namespace=namespace)
    asyncio.run(show(items, as_json=as_json, text=_stats))


@app.command()
def get(
    namespace: Namespace,
    key: Key,
    directory: Directory = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print its revision, model version and times, too.")
    ] = False,
) -> None:
    """Print the value of a record, as JSON.

    \b
    strongroom store get notes first
    strongroom store get notes first --json
    """
    items = request(directory, records.get, namespace=namespace, key=key)
    asyncio.run(show(items, as_json=as_json, kind=ExportedRecord, text=_value))


@app.command()
def put(
    namespace: Namespace,
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON, or - to read it from standard input.")],
    version: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_VERSION,
            help="The version of its model [default: that of the record it replaces, or 0].",
        ),
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Store a record. If it replaces one, the expiry stays as it was.

    \b
    strongroom store put notes first '{"text": "Hello"}'
    echo '{"text": "Hello"}' | strongroom store put notes first -
    """
    given = standard_input().buffer.read() if value == "-" else os.fsencode(value)
    try:
        text = given.decode()
        msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"This is not valid JSON: {error}.",
            remedy="""'{"text": "Hello"}', in single quotes""",
            hint="VALUE",
        ) from None
    items = request(
        directory, records.put, namespace=namespace, key=key, text=text, version=version
    )
    said = "Stored {key} at revision {revision}.".format_map
    asyncio.run(show(items, as_json=as_json, text=said))


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
    items = request(directory, records.delete, namespace=namespace, keys=keys)
    asyncio.run(show(items, as_json=as_json, text=_deletion))


@app.command()
def scan(
    namespace: Namespace,
    prefix: Annotated[str, typer.Option(help="Only keys that begin with this.")] = "",
    after: Annotated[str | None, typer.Option(help="Start after this key.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, max=MAX_NUMBER, help="Maximum number of records.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Start at the last key.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Print no values.")] = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Print records in the order of their keys.

    \b
    strongroom store scan notes --prefix 2026- --limit 10
    strongroom store scan notes --json | jq .value
    """
    items = request(
        directory,
        records.scan,
        namespace=namespace,
        prefix=prefix,
        after=after,
        limit=limit,
        reverse=reverse,
        values=not keys_only,
    )
    asyncio.run(show(items, as_json=as_json, kind=ExportedRecord, text=_line))


@app.command()
def watch(
    namespace: Namespace,
    prefix: Annotated[str, typer.Option(help="Only keys that begin with this.")] = "",
    after: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_NUMBER, help="Start after this revision [default: now]."),
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Print each change when it happens, until you interrupt the command.

    \b
    strongroom store watch notes
    strongroom store watch notes --after 0 --json
    """
    items = request(directory, records.watch, namespace=namespace, prefix=prefix, after=after)
    asyncio.run(show(items, as_json=as_json, kind=ExportedRecord, text=_line))


@app.command()
def export(
    namespace: Namespace,
    out: Annotated[
        Path | None, typer.Option(help="Write to this new file [default: standard output].")
    ] = None,
    sound: Annotated[
        bool,
        typer.Option("--sound", help="Of a damaged file at rest: write what can still be read."),
    ] = False,
    directory: Directory = None,
) -> None:
    """Write all records of one moment, unencrypted, as one JSON object on each line.

    With --sound, other files of the directory may be damaged too; the exit status says whether
    records are missing.

    \b
    strongroom store export notes --out notes.jsonl
    strongroom store export notes | gpg -c > notes.jsonl.gpg
    """
    damage: list[StorageError] = []
    items = request(directory, records.export, namespace=namespace)
    if sound:
        items = recovery.sound_items(directory, namespace, damage)
    if out is None:
        asyncio.run(show(items, as_json=True))
    else:
        with new_file(out) as file:
            count = asyncio.run(show(items, as_json=True, file=file))
        said = f"Wrote {count} records to {out}, unencrypted."
        print(printable(said), file=sys.stderr)
    if damage:
        raise damage[0]


@app.command(name="import")
def import_(
    namespace: Namespace,
    file: Annotated[
        Path,
        typer.Argument(help="A file that export wrote; - for standard input."),
    ],
    partial: Annotated[
        bool, typer.Option("--partial", help="Take an export that was cut, or filtered.")
    ] = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Store the records of a file, after checking all of them.

    A pipe is kept in memory meanwhile.

    \b
    strongroom store import notes notes.jsonl
    strongroom store export notes | strongroom store import copy -
    """
    with _opened(file) as lines:
        count = sum(1 for _ in _read(file, lines, partial=partial))
        lines.seek(0)
        stored, replaced = asyncio.run(_import(directory, namespace, file, lines, count))
    found = {"lines": count, "stored": stored, "replaced": replaced}
    text = f"Stored {{stored}} records in {namespace}; {{replaced}} of them replaced others."
    say(found, text, as_json=as_json)


@app.command()
def compact(
    namespaces: Annotated[
        list[str] | None, typer.Argument(help="The namespaces [default: all].")
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Make files smaller, by the space that deleted records have left.

    A node may use the directory meanwhile; the writes of a namespace wait while its file is
    rewritten. That needs as much memory, and free space on the disk, as the records have.

    \b
    strongroom store compact
    strongroom store compact notes --json
    """
    items = request(directory, records.compact, namespaces=namespaces or [])
    text = "{namespace}: {before:,} bytes, now {bytes:,}".format_map
    asyncio.run(show(items, as_json=as_json, text=text))


@app.command()
def drop(
    namespace: Namespace,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Delete a namespace: its data key first, then its file.

    Copies of the file in backups can then be read only with an older keystore and its master key.

    \b
    strongroom store drop notes
    strongroom store drop notes --yes
    """
    if not yes:
        standard_input()  # the answer comes from there
        name = printable(namespace)
        typer.echo(
            f"This deletes all records of {name} and the key of its file. Copies of the file "
            "in backups can then be read only with an older keystore and its master key."
        )
        typer.confirm(f"Drop {name}?", abort=True)
    items = request(directory, records.drop, namespace=namespace)
    text = "Dropped {namespace} and destroyed its data key.".format_map
    asyncio.run(show(items, as_json=as_json, text=text))


@app.command()
def adopt(
    node_id: Annotated[str, typer.Argument(help="The id of the node that is to have it.")],
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Give a directory that no node uses, with its data and addresses, to the node of another id.

    A node whose FAME_NODE_ID is not the id in its directory does not start: the directories of two
    nodes may have been exchanged. Two nodes never have one directory, nor copies of one.

    \b
    strongroom store adopt agent-2 --directory data
    """
    found = asyncio.run(_adopt(storage_settings(directory), node_id))
    say(found, "The directory of {former} is now that of {node_id}.", as_json=as_json)


async def _adopt(settings: StorageSettings, node_id: str) -> dict[str, str]:
    checked_directory(settings)
    provider = await open_provider(settings)
    try:
        former = await (await NodeStores.open(provider, None)).adopt(node_id)
        if isinstance(provider, SqliteProvider):
            await provider.note("adopted", detail=f"by the node {node_id}, was {former}'s")
    finally:
        await provider.close()
    return {"former": former, "node_id": node_id}


def _stats(found: dict[str, Any]) -> str:
    return "\n".join(f"{name:12} {value}" for name, value in found.items())


def _deletion(found: dict[str, Any]) -> str:
    return f"{found['key']} {'is deleted' if found['deleted'] else 'was not there'}."


def _line(record: ExportedRecord) -> str:
    """A record for people: its key and value, or that it was deleted."""
    value = "(deleted)" if record.deleted else _value(record)
    key = printable(record.key)
    return f"{key}\t{value}" if value else key


def _value(record: ExportedRecord) -> str:
    return printable(bytes(record.value).decode() or record.base64 or "")


async def _import(
    directory: Path | None, namespace: str, file: Path, lines: IO[bytes], count: int
) -> tuple[int, int]:
    stored = replaced = 0
    with terminal().ProgressBar() as bar:
        async with connect(storage_settings(directory)) as client:
            for batch in _batches(_read(file, lines, partial=True)):
                async for item in client.request(
                    records.import_, namespace=namespace, records=batch
                ):
                    done = msgspec.json.decode(item)
                    stored += done["stored"]
                    replaced += done["replaced"]
                bar.show(Progress(namespace, stored, count))
    return stored, replaced


def _opened(file: Path) -> IO[bytes]:
    """The lines of a file, which are read twice: a pipe's are kept in memory."""
    try:
        if str(file) != "-" and stat.S_ISREG(file.stat().st_mode):
            return file.open("rb")
        return io.BytesIO(read_input(file))
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror}.",
            remedy="a file that strongroom store export wrote",
            hint="FILE",
        ) from None


def _batches(lines: Iterator[tuple[int, ExportedRecord]]) -> Iterator[list[ExportedRecord]]:
    batch: dict[str, ExportedRecord] = {}
    size = 0
    for length, record in lines:
        full = len(batch) == BATCH_RECORDS or size + length > BATCH_BYTES
        if batch and (full or record.key in batch):
            yield list(batch.values())
            batch, size = {}, 0
        batch[record.key] = record
        size += length
    if batch:
        yield list(batch.values())


def _read(file: Path, lines: IO[bytes], *, partial: bool) -> Iterator[tuple[int, ExportedRecord]]:
    """The records of an export, each with the length of its line.

    Raises:
        ImportInvalid: A line cannot be read, or the last one is missing; the message says which.
    """
    number, more = 0, True
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.rstrip() == msgspec.json.encode(EMPTY):
            return
        try:
            record = msgspec.json.decode(line, type=ExportedRecord)
            value = record.write().value
        except (ValueError, InvalidKey, RecursionError) as error:
            raise ImportInvalid(
                f"Line {number} of {file} cannot be read: {error}. Nothing was stored.",
                remedy="a file that strongroom store export wrote",
            ) from None
        if len(value or b"") > MAX_VALUE_BYTES:
            raise ImportInvalid(
                f"The value in line {number} of {file} is larger than 64 MiB. Nothing was stored.",
                remedy="the file without this record",
            )
        more = record.more
        yield len(line), record
    if more and not partial:
        raise ImportInvalid(
            f"{file} was cut after line {number}. Nothing was stored.",
            remedy="export it again; or --partial, to store the lines that are there",
        )
