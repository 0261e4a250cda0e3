"""`strongroom key` and `strongroom audit`: who may read, and what was done."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from strongroom.admin.socket import operate
from strongroom.cli.output import (
    KEYSTORES,
    Directory,
    Json,
    new_file,
    show,
    storage_settings,
    write,
)
from strongroom.disk.keyfile import read_keystore
from strongroom.errors import KeystoreMissing, MasterKeyInvalid
from strongroom.keys.master import new_master_key, read_master_key
from strongroom.keys.sheet import read_sheet, write_sheet
from strongroom.settings import StorageSettings

key_app = typer.Typer(help="Make, check and rotate keys.", no_args_is_help=True)
audit_app = typer.Typer(help="What was done with the data directory.", no_args_is_help=True)


@key_app.command()
def new(
    out: Annotated[
        Path | None, typer.Option(help="A new file, mode 0600 [standard output].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new random master key.

    \b
    strongroom key new --out master.key
    export FAME_STORAGE_MASTER_KEY=$(strongroom key new)
    """
    _give("key", new_master_key() + "\n", out, as_json=as_json)


@key_app.command()
def check(directory: Directory = None, as_json: Json = False) -> None:
    """Tell whether the master key opens the directory. Nothing is written.

    \b
    FAME_STORAGE_MASTER_KEY_FILE=master.key strongroom key check --directory data
    """
    settings = storage_settings(directory)
    master = read_master_key(settings)
    path = (settings.directory or Path()) / KEYSTORES["encrypted-sqlite"]
    if not path.exists():
        raise KeystoreMissing(
            f"{path} is not there. Try: --directory, or FAME_STORAGE_DB_DIRECTORY", path=path
        )
    keystore = read_keystore(path, master)
    found = {
        "directory": str(path.parent),
        "opens": True,
        "fingerprint": master.fingerprint,
        "namespaces": len(keystore.entries),
    }
    if as_json:
        write(msgspec.json.encode(found))
    else:
        print(
            f"The master key {master.fingerprint} opens {path.parent}, "
            f"with {len(keystore.entries)} namespaces."
        )


@key_app.command()
def rotate(
    namespaces: Annotated[
        list[str] | None, typer.Argument(help="With --data: only these namespaces.")
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="Rotate data keys.")] = False,
    new_key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the new master key.")
    ] = None,
    new_key_command: Annotated[
        str | None, typer.Option(help="A command that prints the new master key.")
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Put the keystore under a new master key, or the data under new data keys.

    A new master key takes milliseconds: only the keystore is written. New data keys copy every
    file; a node that runs goes on meanwhile, and a rotation that was cut short goes on with the
    namespaces that are left.

    \b
    strongroom key new --out new.key
    strongroom key rotate --new-key-file new.key
    strongroom key rotate --data
    strongroom key rotate --data notes
    """
    if data:
        arguments = {"namespaces": namespaces or None}
        say = "{namespace} is under the new data key {key}."
        _run(directory, "key.rotate-data", as_json=as_json, say=say, **arguments)
        return
    if namespaces or not (new_key_file or new_key_command):
        raise typer.BadParameter(
            "name the new key. Try: strongroom key new --out new.key; "
            "strongroom key rotate --new-key-file new.key (or --data for data keys)"
        )
    source = StorageSettings(master_key_file=new_key_file, master_key_command=new_key_command)
    master = read_master_key(source)
    say = (
        "The keystore is under the master key {fingerprint}. "
        "Give it to the node before the next start."
    )
    _run(directory, "key.rotate-master", as_json=as_json, say=say, master_key=master.text)


@key_app.command()
def status(directory: Directory = None, as_json: Json = False) -> None:
    """Count the data under each data key, and show the keys that were retired.

    \b
    strongroom key status
    """
    columns = ["namespace", "key", "state", "records", "bytes", "pages", "created"]
    _run(directory, "key.status", as_json=as_json, columns=columns)


@key_app.command()
def sheet(
    out: Annotated[Path | None, typer.Option(help="A new file [standard output].")] = None,
    read: Annotated[
        Path | None, typer.Option(help="Read a sheet back, and print its master key; - is stdin.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the master key as a recovery sheet for paper, or read one back.

    \b
    strongroom key sheet --out sheet.txt
    strongroom key sheet --read sheet.txt
    """
    if read is None:
        text = write_sheet(read_master_key(storage_settings(None)))
        _give("sheet", text, out, as_json=as_json)
        return
    try:
        text = sys.stdin.read() if str(read) == "-" else read.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MasterKeyInvalid(f"{read} cannot be read: {error}") from error
    _give("key", read_sheet(text) + "\n", out, as_json=as_json)


@audit_app.command(name="show")
def audit_show(directory: Directory = None, as_json: Json = False) -> None:
    """Show openings, rotations, drops and exports.

    \b
    strongroom audit show
    strongroom audit show --json
    """
    columns = ["number", "time", "event", "namespace", "detail"]
    _run(directory, "audit.show", as_json=as_json, columns=columns)


@audit_app.command(name="verify")
def audit_verify(directory: Directory = None, as_json: Json = False) -> None:
    """Tell whether a line of the log is missing, was changed or cut off.

    \b
    strongroom audit verify
    """
    say = "All {lines} lines of the audit log are there and unchanged."
    _run(directory, "audit.verify", as_json=as_json, say=say)


def _run(
    directory: Path | None,
    command: str,
    *,
    as_json: bool,
    columns: list[str] | None = None,
    say: str = "",
    **arguments: Any,
) -> None:
    async def run() -> None:
        async with operate(storage_settings(directory)) as ask:
            items = ask(command, **arguments)
            await show(items, as_json=as_json, columns=columns or (), say=say)

    asyncio.run(run())


def _give(name: str, text: str, out: Path | None, *, as_json: bool) -> None:
    """Print a secret, or write it to a new file that only its owner can read."""
    if out is not None:
        with new_file(out) as file:
            file.write(text.encode())
    if as_json:
        found = {name: text.rstrip("\n")} if out is None else {"path": str(out)}
        write(msgspec.json.encode(found))
    elif out is None:
        print(text, end="")
    else:
        print(f"{out} is written, for its owner alone.", file=sys.stderr)
