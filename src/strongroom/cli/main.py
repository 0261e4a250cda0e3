"""The command line: `strongroom`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from strongroom import __version__
from strongroom.admin import health
from strongroom.agents.agent import Agent
from strongroom.cli import delivery, keys, store
from strongroom.cli import port as porting
from strongroom.cli.loading import load_agent
from strongroom.cli.output import (
    CLICK_USAGE_ERROR,
    Directory,
    Json,
    UsageError,
    request,
    show,
    without_progress,
    write,
)
from strongroom.errors import (
    InvalidArguments,
    NoRoute,
    StrongroomError,
    Unhealthy,
    UnknownOperation,
)
from strongroom.nodes.fabric import Fabric
from strongroom.nodes.process import run, run_until_stopped
from strongroom.nodes.sentinel import Sentinel
from strongroom.printable import printable
from strongroom.settings import ATTACH_PATH, DEFAULT_PORT, Settings, StorageSettings
from strongroom.storage.sqlite.doctor import Finding

INTERNAL_ERROR = 70
MAX_SECONDS = 365 * 86400
REMEDIES: dict[type[StrongroomError], str] = {
    # The peer's answer says what was wrong, but not what to do on the command line.
    NoRoute: "strongroom status, which shows what is bound",
    UnknownOperation: "one of the operations in the agent's class",
    InvalidArguments: "name=value for each argument",
}

app = typer.Typer(
    name="strongroom",
    help="Run networked agents with encrypted, persistent state, and look after their data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(store.app, name="store")
app.add_typer(delivery.app, name="delivery")
app.add_typer(keys.key_app, name="key")
app.add_typer(keys.audit_app, name="audit")
app.command(name="port")(porting.port_)


def main() -> None:
    """Run the command line. An error prints one line, and its `exit_code` is the exit status.

    With --json, the line is a JSON object, also for arguments that cannot be understood.
    """
    as_json = "--json" in sys.argv
    _open_standard_files()
    try:
        sys.exit(app(standalone_mode=not as_json))
    except StrongroomError as error:
        error.remedy = error.remedy or REMEDIES.get(type(error))
        _fail(error, error.exit_code, as_json=as_json)
    except typer.Abort:
        _fail(StrongroomError("Aborted."), 1, as_json=as_json)
    except OSError as error:
        remedy = "check that it exists and that you may use it"
        _fail(StrongroomError(f"{error}.", remedy=remedy), 1, as_json=as_json)
    except CLICK_USAGE_ERROR as error:  # only with --json: otherwise Click prints it
        usage = StrongroomError(error.format_message(), remedy="strongroom --help")
        _fail(getattr(error, "error", usage), 2, as_json=as_json)
    except UnicodeEncodeError:  # Python decodes what is not UTF-8 to lone surrogates
        text = StrongroomError("An argument is not UTF-8.", remedy="the same in UTF-8")
        _fail(text, 2, as_json=as_json)
    except Exception as error:
        logging.getLogger("strongroom").debug("", exc_info=True)
        defect = StrongroomError(f"{type(error).__name__}: {error}. This is a defect.")
        _fail(defect, INTERNAL_ERROR, as_json=as_json)


def _fail(error: StrongroomError, status: int, *, as_json: bool) -> NoReturn:
    shown = (
        json.dumps(error.as_json(), default=str)
        if as_json
        else f"strongroom: error: {printable(str(error).rstrip())}"
    )
    print(shown, file=sys.stderr)
    sys.exit(status)


def _open_standard_files() -> None:
    """Give the numbers of closed standard files to /dev/null, so that no store gets them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


@app.callback(invoke_without_command=True)
def _strongroom(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"strongroom {__version__}")
        raise typer.Exit


@app.command()
def sentinel() -> None:
    """Run a sentinel, which connects nodes, until SIGTERM or SIGINT.

    \b
    strongroom sentinel
    FAME_LISTENER_PORT=9000 FAME_STORAGE_PROFILE=encrypted-sqlite strongroom sentinel
    """
    run(Sentinel().aserve())


@app.command()
def agent(
    which: Annotated[str, typer.Argument(metavar="MODULE:CLASS", help="A subclass of BaseAgent.")],
    address: Annotated[str, typer.Option(help="The agent's address, such as echo@fame.fabric.")],
) -> None:
    """Run an agent until SIGTERM or SIGINT.

    \b
    strongroom agent my_agents:Storage --address storage@fame.fabric
    """
    run(load_agent(which).aserve(address))


@app.command()
def gateway() -> None:
    """Answer HTTP for the agents of a fabric, until SIGTERM or SIGINT.

    The sentinel is the one at FAME_DIRECT_ADMISSION_URL, or else on this machine at port 8000. The
    gateway listens on FAME_LISTENER_HOST and FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT (8080).

    \b
    strongroom gateway
    FAME_LISTENER_AGENT_HTTP_GATEWAY_PORT=9080 strongroom gateway
    """
    run(run_until_stopped(Fabric(dataclasses.replace(_visitor(), gateway=True))))


@app.command()
def call(
    address: Annotated[str, typer.Argument(help="The agent's address.")],
    operation: Annotated[str, typer.Argument(help="The operation's name.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="JSON or plain text, by position or as name=value."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the items of a streaming operation.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0, max=MAX_SECONDS, help="Seconds to wait for the result.")
    ] = 30.0,
) -> None:
    """Call an operation of an agent, and print its result as JSON.

    The sentinel is the one at FAME_DIRECT_ADMISSION_URL, or else on this machine at port 8000.

    \b
    strongroom call storage@fame.fabric store_value key '"value"'
    strongroom call storage@fame.fabric store_value key=a value=b
    strongroom call storage@fame.fabric retrieve_all_values --stream
    """
    asyncio.run(_call(address, operation, arguments or [], timeout, stream=stream))


async def _call(
    address: str, operation: str, arguments: list[str], timeout: float, *, stream: bool
) -> None:
    if operation.startswith("_"):
        raise UsageError(
            f"{operation} is not an operation.", remedy=REMEDIES[UnknownOperation], hint="OPERATION"
        )
    named = {}
    by_place = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals and name.isidentifier() and name not in {"_stream", "_timeout"}:
            named[name] = _json_or_text(text)
        else:
            by_place.append(_json_or_text(argument))
    async with Fabric(_visitor()):
        remote = Agent.remote_by_address(address)
        called = getattr(remote, operation)(*by_place, _stream=stream, _timeout=timeout, **named)
        if stream:
            async for item in called:
                write(msgspec.json.encode(item))
        else:
            write(msgspec.json.encode(await called))


def _visitor() -> Settings:
    """The settings of a node that stores nothing, attached to the usual sentinel."""
    settings = Settings.from_environment()
    return dataclasses.replace(
        settings,
        admission_url=settings.admission_url or f"ws://127.0.0.1:{DEFAULT_PORT}{ATTACH_PATH}",
        max_initial_attempts=settings.max_initial_attempts or 1,
        node_id=None,
        storage=StorageSettings(),
    )


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


@app.command()
def status(directory: Directory = None, as_json: Json = False) -> None:
    """Show the running node of a directory.

    Shows its id, path and bindings; for a sentinel, also its nodes and their routes.

    \b
    strongroom status
    strongroom status --directory data --json
    """
    asyncio.run(show(request(directory, health.status), as_json=as_json, text=_status))


def _status(found: dict[str, Any]) -> str:
    nodes, bindings = found.pop("nodes", []), found.pop("bindings")
    lines = [f"{name:10} {'-' if value is None else value}" for name, value in found.items()]
    lines += [f"{'binding':10} {binding}" for binding in bindings]
    for node in nodes:
        lines.append(f"{'node':10} {node['id']} ({'attached' if node['attached'] else 'away'})")
        lines += [f"{'  route':10} {address}" for address in node["addresses"]]
    return "\n".join(lines)


@app.command(name="doctor")
def doctor_(directory: Directory = None, as_json: Json = False) -> None:
    """Check that the data of a directory is safe.

    Checks keys, file modes, free space, every page, every record and the audit log, and changes
    nothing. If a node uses the directory, the node itself examines it. Otherwise private copies of
    its files are examined.

    \b
    strongroom doctor
    strongroom doctor --directory data --json
    """
    problems = asyncio.run(_doctor(directory, as_json=as_json))
    if problems:
        count = "1 problem" if problems == 1 else f"{problems} problems"
        raise Unhealthy(f"Found {count}.", remedy="the remedy beside each")


async def _doctor(directory: Path | None, *, as_json: bool) -> int:
    problems = 0
    async for item in without_progress(request(directory, health.doctor)):
        finding = msgspec.json.decode(item, type=Finding)
        problems += finding.level == "problem"
        where = f"{finding.namespace}: " if finding.namespace else ""
        said = StrongroomError(f"{where}{finding.what}", remedy=finding.remedy)
        write(item if as_json else f"{finding.level:8} {printable(str(said))}".encode())
    return problems
