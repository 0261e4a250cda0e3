"""`strongroom store accept` and `forget`: ways out when the node does not start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from strongroom.admin.command import Progress
from strongroom.admin.health import ENCRYPTS
from strongroom.admin.records import ExportedRecord, exported
from strongroom.admin.socket import checked_directory
from strongroom.cli.output import Directory, Json, Namespace, say, standard_input, storage_settings
from strongroom.errors import NotSupported, StorageError
from strongroom.printable import printable
from strongroom.settings import StorageSettings
from strongroom.storage.records import Record
from strongroom.storage.sqlite.recovery import Found, recovering

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def accept(
    namespace: Namespace, yes: Yes = False, directory: Directory = None, as_json: Json = False
) -> None:
    """Take an older copy of a namespace's file as the truth, so that the node starts with it.

    What was stored after that copy was made is lost. The keystore is __keystore. No node may use
    the directory meanwhile.

    \b
    strongroom store accept notes
    strongroom store accept __keystore --yes
    """
    asyncio.run(_accept(directory, namespace, yes=yes, as_json=as_json))


def forget(
    namespace: Namespace, yes: Yes = False, directory: Directory = None, as_json: Json = False
) -> None:
    """Give up a namespace whose file is lost or damaged, so that the node starts without it.

    Its keys are destroyed and its file is deleted. A file that is not the namespace's own is set
    aside, under another name in the directory. No node may use the directory meanwhile.

    \b
    strongroom store forget notes
    """
    asyncio.run(_forget(directory, namespace, yes=yes, as_json=as_json))


async def sound_items(
    directory: Path | None, namespace: str, damage: list[StorageError]
) -> AsyncGenerator[Any, None]:
    """The lines of an export of what can be read; what cannot is added to `damage` at the end."""
    settings = _settings(directory)
    async with recovering(settings, encrypts=ENCRYPTS[settings.profile]) as recovery:
        found = await recovery.look(namespace)

        async def pages() -> AsyncGenerator[Sequence[Record], None]:
            count = 0
            try:
                async with aclosing(recovery.sound_records(found)) as read:
                    async for page in read:
                        count += len(page)
                        yield page
            except StorageError as error:
                if not count:
                    raise
                damage.append(error)

        async with aclosing(exported(pages(), namespace, 0)) as lines:
            async for line in lines:
                if not isinstance(line, Progress):
                    if damage and isinstance(line, ExportedRecord):
                        line.more = True  # this is the last, and an import is to know of the rest
                    yield msgspec.json.encode(line)


async def _accept(directory: Path | None, namespace: str, *, yes: bool, as_json: bool) -> None:
    settings = _settings(directory)
    async with recovering(settings, encrypts=ENCRYPTS[settings.profile]) as recovery:
        found = await recovery.look(namespace)
        lost = "What was stored since is lost."
        if found.known and found.revision is not None:
            lost = f"{found.known} is known, so {found.known - found.revision} changes are lost."
        _confirm(f"{found.path} is at revision {found.revision}. {lost}", "Accept it?", yes=yes)
        await recovery.accept(found)
    text = "{namespace} is accepted as it is, at revision {revision}."
    say(_described(found), text, as_json=as_json)


async def _forget(directory: Path | None, namespace: str, *, yes: bool, as_json: bool) -> None:
    settings = _settings(directory)
    async with recovering(settings, encrypts=ENCRYPTS[settings.profile]) as recovery:
        found = await recovery.look(namespace)
        fate = (
            f"This deletes all records of {namespace}, and its key."
            if found.is_ours
            else f"{found.path} is not the file of {namespace}: it is set aside, and the records "
            f"of {namespace} are given up."
        )
        _confirm(fate, f"Forget {namespace}?", yes=yes)
        await recovery.forget(found)
    text = "{namespace} is forgotten."
    if found.aside is not None:
        text += " The file in its place is now {aside}."
    say(_described(found), text, as_json=as_json)


def _settings(directory: Path | None) -> StorageSettings:
    settings = storage_settings(directory)
    if settings.profile not in ENCRYPTS:
        raise NotSupported(
            f"The profile {settings.profile} keeps no files.",
            remedy="FAME_STORAGE_PROFILE=encrypted-sqlite, or sqlite",
        )
    checked_directory(settings)
    return settings


def _confirm(what: str, question: str, *, yes: bool) -> None:
    if not yes:
        standard_input()  # the answer comes from there
        typer.echo(printable(what))
        typer.confirm(printable(question), abort=True)


def _described(found: Found) -> dict[str, Any]:
    return {
        "namespace": found.namespace,
        "revision": found.revision,
        "known": found.known,
        "aside": None if found.aside is None else str(found.aside),
    }
