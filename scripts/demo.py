"""Runs the nodes of examples/encrypted-storage in the background; its Makefile calls this.

A node holds a lock on its pid file while it lives. When it has died and its process id has passed
to another program, the lock is free, and that program is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from strongroom.keys.master import new_master_key
from strongroom.testing import leak_scan

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "encrypted-storage"
NODES = {"sentinel": "sentinel.py", "agent": "storage_agent.py"}
START_SECONDS = 30
STOP_SECONDS = 10
DEFAULT_PORT = 8000
STORED = ["Hello, World!", "storage@fame.fabric", "fame.capability.agent"]
STORAGE = """\
FAME_STORAGE_PROFILE=encrypted-sqlite
FAME_STORAGE_MASTER_KEY={key}
FAME_STORAGE_DB_DIRECTORY=data/{name}
"""


class Failure(Exception):
    """A message for the user, printed without a traceback."""


class Home:
    """A directory with the example's config, data, logs and process ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config"
        self.data = path / "data"
        self.run = path / ".run"

    # --- config -------------------------------------------------------------------------------

    def init(self) -> None:
        """Make a new master key and the environment of each node; keep the former ones."""
        self.config.mkdir(parents=True, exist_ok=True)
        former = self._set_former_aside()
        attach = f"FAME_DIRECT_ADMISSION_URL={_attach_url(DEFAULT_PORT)}\n"
        key = new_master_key()
        token = f"FAME_ADMISSION_TOKEN={secrets.token_urlsafe(24)}\n"
        attach += token
        listen = f"FAME_LISTENER_PORT={DEFAULT_PORT}\n{token}"
        self._write("sentinel", listen + STORAGE.format(key=key, name="sentinel"))
        self._write("agent", attach + STORAGE.format(key=key, name="agent"))
        self._write("client", attach)
        for name in NODES:
            (self.data / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        print(f"Made a new master key in {self.config}/.env.*")
        if former:
            print(f"The former key is in {former}. To go back to it:")
            print(f"    make stop && cp {former}/.env.* {self.config}/")
        if any(self.data.glob("*/*.db")):
            print("The data here needs the former key: go back to it, or run `make clean`.")

    def _set_former_aside(self) -> Path | None:
        files = list(self.config.glob(".env.*"))
        if not files:
            return None
        former = self.config / f"before-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%fZ}"
        former.mkdir(mode=0o700)
        for path in files:
            path.rename(former / path.name)
        return former

    def _write(self, name: str, text: str) -> None:
        path = self.config / f".env.{name}"
        path.touch(mode=0o600)
        path.write_text(text)

    def environment(self, name: str, port: int | None) -> dict[str, str]:
        """The environment of a node: its file's, and `port` if one is given."""
        lines = (self.config / f".env.{name}").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        if port is not None and name == "sentinel":
            values["FAME_LISTENER_PORT"] = str(port)
        elif port is not None:
            values["FAME_DIRECT_ADMISSION_URL"] = _attach_url(port)
        others = {key: value for key, value in os.environ.items() if not key.startswith("FAME_")}
        return others | values

    # --- the nodes ----------------------------------------------------------------------------

    def start(self, port: int | None) -> None:
        """Start the nodes that don't run yet, and wait until each is ready."""
        if not (self.config / ".env.agent").exists():
            self.init()
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "port").write_text("" if port is None else str(port))
        for name in NODES:
            if self.pid(name):
                print(f"The {name} runs already.")
            else:
                self._start(name, port)

    def _start(self, name: str, port: int | None) -> None:
        with _notify_socket() as ready, (self.run / f"{name}.pid").open("w") as pid_file:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self.log(name).open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, EXAMPLE / NODES[name]],
                    cwd=self.path,
                    env=self.environment(name, port) | {"NOTIFY_SOCKET": ready.getsockname()},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[pid_file.fileno()],  # the lock goes with it
                    start_new_session=True,
                )
            pid_file.write(str(process.pid))
            pid_file.flush()
            self._await_ready(name, process, ready)
        print(f"The {name} is ready (process {process.pid}).")

    def _await_ready(
        self, name: str, process: subprocess.Popen[bytes], ready: socket.socket
    ) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return
            if process.poll() is not None:
                lines = self.log(name).read_text(errors="replace").strip().splitlines()
                reason = "\n".join(lines[-3:]) or "Its log is empty."
                raise Failure(f"The {name} ended with status {process.returncode}:\n{reason}")
        process.terminate()
        raise Failure(f"The {name} was not ready in {START_SECONDS} s; see {self.log(name)}")

    def stop(self) -> None:
        """Stop the nodes, the agent first."""
        for name in reversed(NODES):
            pid = self.pid(name)
            if pid is None:
                continue
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self.pid(name):
                if time.monotonic() > deadline:
                    print(f"The {name} did not stop in {STOP_SECONDS} s, and was killed.")
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
            print(f"The {name} has stopped.")

    def pid(self, name: str) -> int | None:
        """The process id of a running node, else None."""
        with contextlib.suppress(FileNotFoundError), (self.run / f"{name}.pid").open("r+") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(held.read())
        return None

    def log(self, name: str) -> Path:
        """Where a node's log is."""
        return self.run / f"{name}.log"

    def client(self, *, verbose: bool = False) -> None:
        """Run the client once, in the foreground."""
        if not self.pid("agent"):
            raise Failure("The agent does not run. Try: make start")
        port = (self.run / "port").read_text()
        environment = self.environment("client", int(port) if port else None)
        if verbose:
            environment["FAME_SHOW_ENVELOPES"] = "true"
        done = subprocess.run(
            [sys.executable, EXAMPLE / "client.py"], cwd=self.path, env=environment, check=False
        )
        if done.returncode:
            raise Failure(f"The client ended with status {done.returncode}.")

    def clean(self) -> None:
        """Stop the nodes; remove data, logs, and every key, the former ones too."""
        self.stop()
        for directory in (self.data, self.run, *self.config.glob("before-*")):
            shutil.rmtree(directory, ignore_errors=True)
        for path in self.config.glob(".env.*"):
            path.unlink()

    def status(self) -> None:
        """Print which nodes run."""
        for name in NODES:
            pid = self.pid(name)
            print(f"{name}: {f'runs (process {pid})' if pid else 'does not run'}")

    def logs(self) -> None:
        """Print the nodes' logs."""
        for name in NODES:
            print(f"--- {name}")
            if self.log(name).exists():
                print(self.log(name).read_text(errors="replace"), end="")

    def files(self) -> None:
        """List the files, and search each of them for what was stored."""
        files = sorted(path for path in self.data.rglob("*") if path.is_file())
        for path in files:
            print(f"  {path.stat().st_size:>8} bytes  {path.relative_to(self.path)}")
        stored = [*STORED, f"key_{time.time() * 1000:.0f}"[:9]]  # how today's keys begin
        leaks = leak_scan(self.data, stored)
        if leaks:
            raise Failure("\n".join(str(leak) for leak in leaks))
        size = sum(path.stat().st_size for path in files)
        print(f"None of {', '.join(map(repr, stored))} is in any of these {size} bytes.")


def demo(home: Home, port: int) -> None:
    """Store a value, search the files for it, restart both nodes, and find it again."""
    home.clean()
    try:
        _step("A sentinel and an agent start, with a new master key")
        home.init()
        home.start(port)
        _step("A client stores a value, reads it back, and lists all")
        home.client()
        _step("What is on disk while the nodes run")
        home.files()
        _step("Both nodes stop and start again")
        home.stop()
        home.start(port)
        _step("The client stores one more; the value from before is still there")
        home.client()
        _step("The nodes stop")
        home.stop()
        home.files()
    finally:
        home.clean()
        shutil.rmtree(home.path, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = ["init", "start", "run", "run-verbose", "stop", "status", "logs", "clean", "demo"]
    parser.add_argument("command", choices=commands)
    parser.add_argument("--port", type=_port, help=f"the sentinel's port (default {DEFAULT_PORT})")
    parser.add_argument(
        "--home", type=Path, default=EXAMPLE, help="the directory of config, data and logs"
    )
    arguments = parser.parse_args()
    assert isinstance(sys.stdout, TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # so that the client's lines come in order
    home = Home(arguments.home.resolve())
    actions: dict[str, Callable[[], None]] = {
        "init": home.init,
        "start": lambda: home.start(arguments.port),
        "run": home.client,
        "run-verbose": lambda: home.client(verbose=True),
        "stop": home.stop,
        "status": home.status,
        "logs": home.logs,
        "clean": home.clean,
        "demo": lambda: demo(Home(home.path / ".demo"), arguments.port or _free_port()),
    }
    try:
        actions[arguments.command]()
    except Failure as failure:
        sys.exit(str(failure))


@contextlib.contextmanager
def _notify_socket() -> Iterator[socket.socket]:
    """A socket on which a node reports that it is ready, as sd_notify(3) describes."""
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        ready.bind(f"{directory}/notify")
        ready.settimeout(0.1)
        yield ready


def _attach_url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/fame/v1/attach/ws/downstream"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _port(text: str) -> int | None:
    return int(text) if text else None


def _step(title: str) -> None:
    print(f"\n=== {title}\n", flush=True)


if __name__ == "__main__":
    main()
