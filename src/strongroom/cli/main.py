"""The command line: `strongroom`."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from strongroom import __version__
from strongroom.admin import commands
from strongroom.admin.commands import Progress
from strongroom.admin.socket import STATUS, operate
from strongroom.agents.agent import Agent, BaseAgent
from strongroom.cli import keys, store
from strongroom.cli.output import Directory, Json, storage_settings, without_progress, write
from strongroom.errors import (
    InvalidArguments,
    NoRoute,
    OwnerUnreachable,
    StrongroomError,
    Unhealthy,
    UnknownOperation,
)
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.process import run
from strongroom.nodes.sentinel import Sentinel
from strongroom.settings import ATTACH_PATH, DEFAULT_PORT, Settings, StorageSettings
from strongroom.storage.sqlite import doctor

INTERNAL_ERROR = 70
REMEDIES: dict[
    type[StrongroomError], str
] = {  # a peer's answer says what was wrong, but not what to do on the command line
    NoRoute: "strongroom status, which shows who is bound",
    UnknownOperation: "one of the operations in the agent's class",
    InvalidArguments: "name=value for each argument",
}

app = typer.Typer(
    name="strongroom",
    help="Run networked agents whose state is persistent and encrypted, and look after their data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(store.app, name="store")
app.add_typer(keys.key_app, name="key")
app.add_typer(keys.audit_app, name="audit")


def main() -> None:
    """Run the command line; an error ends it with a sentence and the error's exit status."""
    try:
        app()
    except StrongroomError as error:
        error.remedy = error.remedy or REMEDIES.get(type(error))
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(
            f"{error}. Try: see that it exists, and that you may use it", StrongroomError.exit_code
        )
    except Exception as error:
        logging.getLogger("strongroom").debug("", exc_info=True)
        _fail(f"{type(error).__name__}: {error}. This is a defect.", INTERNAL_ERROR)


def _fail(sentence: str, status: int) -> None:
    print(f"strongroom: error: {sentence}", file=sys.stderr)
    sys.exit(status)


@app.callback(invoke_without_command=True)
def _strongroom(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"strongroom {__version__}")
        raise typer.Exit


@app.command()
def sentinel() -> None:
    """Run a sentinel, to which nodes attach, until SIGTERM or SIGINT.

    \b
    strongroom sentinel
    FAME_LISTENER_PORT=9000 FAME_STORAGE_PROFILE=encrypted-sqlite strongroom sentinel
    """
    run(Sentinel().aserve())


@app.command()
def agent(
    which: Annotated[str, typer.Argument(metavar="MODULE:CLASS", help="A subclass of BaseAgent.")],
    address: Annotated[str, typer.Option(help="Where it answers, such as echo@fame.fabric.")],
) -> None:
    """Run an agent until SIGTERM or SIGINT.

    \b
    strongroom agent my_agents:Storage --address storage@fame.fabric
    """
    run(_agent_class(which)().aserve(address))


def _agent_class(which: str) -> type[BaseAgent[Any]]:
    module, _, name = which.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"{which} cannot be loaded: {error}. Try: my_module:MyAgent, from its directory"
        raise typer.BadParameter(message, param_hint="MODULE:CLASS") from None
    if not (isinstance(found, type) and issubclass(found, BaseAgent)):
        raise typer.BadParameter(f"{which} is no BaseAgent.", param_hint="MODULE:CLASS")
    return found


@app.command()
def call(
    address: Annotated[str, typer.Argument(help="The agent's address.")],
    operation: Annotated[str, typer.Argument(help="The operation's name.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="JSON or plain text each; name=... gives one by its name."),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print a stream's items.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 30.0,
) -> None:
    """Call an operation of an agent, and print what it returns as JSON.

    The sentinel is that of FAME_DIRECT_ADMISSION_URL, else the one on this machine's port 8000.

    \b
    strongroom call storage@fame.fabric store_value key '"value"'
    strongroom call storage@fame.fabric store_value key=a value=b
    strongroom call storage@fame.fabric retrieve_all_values --stream
    """
    asyncio.run(_call(address, operation, arguments or [], timeout, stream=stream))


async def _call(
    address: str, operation: str, arguments: list[str], timeout: float, *, stream: bool
) -> None:
    settings = Settings.from_environment()
    url = settings.admission_url or f"ws://127.0.0.1:{DEFAULT_PORT}{ATTACH_PATH}"
    settings = dataclasses.replace(
        settings,
        admission_url=url,
        max_initial_attempts=settings.max_initial_attempts or 1,
        node_id=None,
        storage=StorageSettings(),
    )
    named = {}
    by_place = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals and name.isidentifier():
            named[name] = _json_or_text(text)
        else:
            by_place.append(_json_or_text(argument))
    async with Fabric(settings):
        remote = Agent.remote_by_address(address)
        called = getattr(remote, operation)(*by_place, _stream=stream, _timeout=timeout, **named)
        if stream:
            async for item in called:
                write(msgspec.json.encode(item))
        else:
            write(msgspec.json.encode(await called))


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


@app.command()
def status(directory: Directory = None, as_json: Json = False) -> None:
    """Show the node that runs on a directory: its bindings, and a sentinel's nodes and routes.

    \b
    strongroom status
    strongroom status --directory data --json
    """
    asyncio.run(_status(directory, as_json=as_json))


async def _status(directory: Path | None, *, as_json: bool) -> None:
    async with operate(storage_settings(directory), running=True) as ask:
        async for item in ask(STATUS):
            if as_json:
                write(item)
                continue
            found = msgspec.json.decode(item)
            nodes, bindings = found.pop("nodes", []), found.pop("bindings")
            for name, value in found.items():
                print(f"{name:10} {'-' if value is None else value}")
            for binding in bindings:
                print(f"{'binding':10} {binding}")
            for node in nodes:
                state = "attached" if node["attached"] else "away"
                print(f"{'node':10} {node['id']} ({state})")
                for address in node["addresses"]:
                    print(f"{'  route':10} {address}")


@app.command(name="doctor")
def doctor_(directory: Directory = None, as_json: Json = False) -> None:
    """Tell whether the data is safe: keys, modes, every page and every record.

    On a directory that a node uses, the node looks; one at rest is looked at in private copies.
    Nothing is changed.

    \b
    strongroom doctor
    strongroom doctor --directory data --json
    """
    problems = asyncio.run(_doctor(storage_settings(directory), as_json=as_json))
    if problems:
        raise Unhealthy(f"{problems} problems were found. Try: what stands beside each")


async def _doctor(settings: StorageSettings, *, as_json: bool) -> int:
    problems = 0
    async for item in without_progress(_findings(settings)):
        finding = msgspec.json.decode(item, type=doctor.Finding)
        problems += finding.level == "problem"
        if as_json:
            write(item)
            continue
        where = f"{finding.namespace}: " if finding.namespace else ""
        remedy = f" Try: {finding.remedy}" if finding.remedy else ""
        print(f"{finding.level:8} {where}{finding.what}{remedy}")
    return problems


async def _findings(settings: StorageSettings) -> AsyncIterator[Any]:
    try:
        async with operate(settings, running=True) as ask:
            async for item in ask("doctor"):
                yield item
    except OwnerUnreachable:
        async for item in commands.doctor_at_rest(settings):
            yield item if isinstance(item, Progress) else msgspec.json.encode(item)
