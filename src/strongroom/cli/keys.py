"""`strongroom key` and `strongroom audit`: keys, and the log of what was done with them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from strongroom.admin import keys
from strongroom.cli.output import (
    KEYSTORES,
    Directory,
    Json,
    UsageError,
    new_file,
    read_input,
    request,
    say,
    show,
    storage_settings,
    write,
)
from strongroom.disk.keyfile import read_keystore
from strongroom.errors import KeystoreMissing, MasterKeyInvalid, NotSupported
from strongroom.keys.master import MasterKey, key_text, new_master_key, read_master_key
from strongroom.keys.sheet import read_sheet, write_sheet
from strongroom.printable import printable
from strongroom.settings import StorageSettings

key_app = typer.Typer(help="Make, check and rotate keys.", no_args_is_help=True)
audit_app = typer.Typer(
    help="Show and verify the audit log of a data directory.", no_args_is_help=True
)


@key_app.command()
def new(
    out: Annotated[
        Path | None,
        typer.Option(help="Write to this new file, mode 0600 [default: standard output]."),
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
    """Check that the master key opens the directory. Nothing is written.

    \b
    FAME_STORAGE_MASTER_KEY_FILE=master.key strongroom key check --directory data
    """
    settings = storage_settings(directory)
    master = read_master_key(settings, existing=True)
    path = (settings.directory or Path()) / KEYSTORES["encrypted-sqlite"]
    if not os.path.lexists(path):
        raise KeystoreMissing(
            f"{path} does not exist.", remedy="--directory, or FAME_STORAGE_DB_DIRECTORY", path=path
        )
    keystore = read_keystore(path, master)
    found = {
        "directory": str(path.parent),
        "opens": True,
        "fingerprint": master.fingerprint,
        "namespaces": len(keystore.entries),
    }
    text = "The master key {fingerprint} opens {directory}, with {namespaces} namespaces."
    say(found, text, as_json=as_json)


@key_app.command()
def rotate(
    namespaces: Annotated[
        list[str] | None, typer.Argument(help="With --data: only these namespaces [default: all].")
    ] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Rotate data keys instead of the master key.")
    ] = False,
    new_key_file: Annotated[
        Path | None,
        typer.Option(help="A file that holds the new master key; - for standard input."),
    ] = None,
    new_key_command: Annotated[
        str | None, typer.Option(help="A command that prints the new master key.")
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Change the master key, or with --data the data keys.

    Changing the master key takes milliseconds, since it writes only the keystore. Changing data
    keys copies every file, while the node keeps running; if it is interrupted, run it again and it
    continues with the namespaces that are left.

    \b
    strongroom key new --out new.key
    strongroom key rotate --new-key-file new.key
    strongroom key rotate --data
    strongroom key rotate --data notes
    """
    if data:
        text = "{namespace} now uses the new data key {key}."
        items = request(directory, keys.rotate_data, namespaces=namespaces or None)
    elif namespaces or not (new_key_file or new_key_command):
        raise UsageError(
            "The new master key is missing.",
            remedy="strongroom key new --out new.key; strongroom key rotate --new-key-file "
            "new.key (or --data for data keys)",
        )
    else:
        text = "The keystore now uses the master key {fingerprint}. "
        text += "Set the new key for the node before you restart it."
        master = _new_master(directory, new_key_file, new_key_command)
        items = request(directory, keys.rotate_master, master_key=master.text)
    asyncio.run(show(items, as_json=as_json, text=text.format_map))


@key_app.command()
def status(directory: Directory = None, as_json: Json = False) -> None:
    """Show how much data each data key encrypts, and the retired keys.

    \b
    strongroom key status
    """
    asyncio.run(show(request(directory, keys.status), as_json=as_json))


@key_app.command()
def sheet(
    out: Annotated[
        Path | None, typer.Option(help="Write to this new file [default: standard output].")
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option(help="Read this sheet (- for standard input), and print its master key."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the master key as a recovery sheet for paper, or read such a sheet.

    \b
    strongroom key sheet --out sheet.txt
    strongroom key sheet --read sheet.txt
    """
    if read is None:
        text = write_sheet(read_master_key(storage_settings(None)))
        _give("sheet", text, out, as_json=as_json)
        return
    try:
        text = read_input(read).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise MasterKeyInvalid(
            f"{read} cannot be read: {why}.", remedy="a sheet that strongroom key sheet wrote"
        ) from None
    _give("key", read_sheet(text) + "\n", out, as_json=as_json)


@audit_app.command(name="show")
def audit_show(directory: Directory = None, as_json: Json = False) -> None:
    """Show when the directory was opened, and its rotations, drops and exports.

    \b
    strongroom audit show
    strongroom audit show --json
    """
    asyncio.run(show(request(directory, keys.show_audit), as_json=as_json))


@audit_app.command(name="verify")
def audit_verify(directory: Directory = None, as_json: Json = False) -> None:
    """Check that no line of the log is missing or was changed.

    \b
    strongroom audit verify
    """
    text = "All {lines} lines of the audit log are there and unchanged.".format_map
    asyncio.run(show(request(directory, keys.verify_audit), as_json=as_json, text=text))


def _new_master(directory: Path | None, file: Path | None, command: str | None) -> MasterKey:
    found = storage_settings(directory).directory
    if found is not None and os.path.lexists(found / KEYSTORES["sqlite"]):
        raise NotSupported(  # before the key leaves this process
            f"{found} is not encrypted, so it has no master key.",
            remedy="another directory in FAME_STORAGE_DB_DIRECTORY",
        )
    if str(file) == "-" and not command:
        return MasterKey(key_text(read_input(Path("-"))))
    return read_master_key(StorageSettings(master_key_file=file, master_key_command=command))


def _give(name: str, text: str, out: Path | None, *, as_json: bool) -> None:
    """Print a secret, or write it to a new file that only its owner can read."""
    if out is not None:
        with new_file(out) as file:
            file.write(text.encode())
    if as_json:
        found = {name: text.rstrip("\n")} if out is None else {"path": str(out)}
        write(msgspec.json.encode(found))
    elif out is None:
        write(text.encode().removesuffix(b"\n"))
    else:
        print(f"Wrote {printable(str(out))} (readable only by its owner).", file=sys.stderr)
