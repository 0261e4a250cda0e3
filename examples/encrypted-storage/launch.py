"""Runs the example's nodes as background processes of this machine; the Makefile calls it.

A node's process holds a lock on its pid file for as long as it lives, so a process id that was
given to somebody else meanwhile is never taken for the node.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from strongroom.keys.master import new_master_key
from strongroom.testing import leak_scan

EXAMPLE = Path(__file__).resolve().parent
NODES = {"sentinel": "sentinel.py", "agent": "storage_agent.py"}
START_SECONDS = 30
STOP_SECONDS = 10
DEFAULT_PORT = 8000
STORED = ["Hello, World!", "storage@fame.fabric", "fame.capability.agent"]


class Failure(Exception):
    """What to tell the user, and nothing else."""


class Home:
    """Where a run of the example keeps its config, its data, and its process ids and logs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config"
        self.data = path / "data"
        self.run = path / ".run"

    def init(self) -> None:
        """Make a new master key, and the environment of each node."""
        self.config.mkdir(parents=True, exist_ok=True)
        url = _admission_url(DEFAULT_PORT)
        storage = (
            f"FAME_STORAGE_PROFILE=encrypted-sqlite\nFAME_STORAGE_MASTER_KEY={new_master_key()}\n"
        )
        self._write(
            "sentinel",
            f"FAME_LISTENER_PORT={DEFAULT_PORT}\n{storage}FAME_STORAGE_DB_DIRECTORY=data/sentinel\n",
        )
        self._write(
            "agent",
            f"FAME_DIRECT_ADMISSION_URL={url}\n{storage}FAME_STORAGE_DB_DIRECTORY=data/agent\n",
        )
        self._write("client", f"FAME_DIRECT_ADMISSION_URL={url}\n")
        print(f"Made a new master key in {self.config}/.env.*")
        if any(self.data.glob("*/*.db")):
            print("The data here was stored under another key: keep that, or run `make clean`.")

    def _write(self, name: str, text: str) -> None:
        path = self.config / f".env.{name}"
        path.touch(mode=0o600)
        path.write_text(text)

    def environment(self, name: str, port: int | None) -> dict[str, str]:
        """The environment of a node: its file's, and the port where one is asked for."""
        lines = (self.config / f".env.{name}").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        if port is not None and name == "sentinel":
            values["FAME_LISTENER_PORT"] = str(port)
        elif port is not None:
            values["FAME_DIRECT_ADMISSION_URL"] = _admission_url(port)
        others = {k: v for k, v in os.environ.items() if not k.startswith("FAME_")}
        return {**others, **values}

    # --- the nodes ----------------------------------------------------------------------------

    def start(self, port: int | None) -> None:
        """Bring up the nodes that don't run yet, and wait until each is ready."""
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
                    env={**self.environment(name, port), "NOTIFY_SOCKET": ready.getsockname()},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[pid_file.fileno()],  # with it goes the lock
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
                said = self.log(name).read_text(errors="replace").strip().splitlines()
                reason = "\n".join(said[-3:]) or "it said nothing"
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
        """The process id of a node that runs; None if it doesn't."""
        try:
            with (self.run / f"{name}.pid").open("r+") as pid_file:
                try:
                    fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(pid_file.read())
        except FileNotFoundError:
            pass
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
        """Remove data, configs with their secrets, and logs."""
        self.stop()
        for directory in (self.data, self.run):
            shutil.rmtree(directory, ignore_errors=True)
        for path in self.config.glob(".env.*"):
            path.unlink()


# --- commands ---------------------------------------------------------------------------------


def demo(home: Home, port: int | None) -> None:
    """The whole story on data of its own: store, look at the files, restart, find it again."""
    home.clean()
    port = port or _free_port()
    try:
        _step("A sentinel and an agent start, with a master key just made")
        home.init()
        home.start(port)
        _step("A client stores a value, reads it back, and lists all")
        home.client()
        _step("What is on disk while the nodes run")
        show_files(home)
        _step("Both nodes stop and start again")
        home.stop()
        home.start(port)
        _step("The client stores one more; the value from before is still there")
        home.client()
        _step("The nodes stop")
        home.stop()
        show_files(home)
    finally:
        home.stop()
        home.clean()
        shutil.rmtree(home.path, ignore_errors=True)


def show_files(home: Home) -> None:
    """List the files, and look in each for what was stored."""
    files = sorted(path for path in home.data.rglob("*") if path.is_file())
    for path in files:
        print(f"  {path.stat().st_size:>8} bytes  {path.relative_to(home.path)}")
    stored = [*STORED, f"key_{time.time() * 1000:.0f}"[:9]]  # and how today's keys begin
    leaks = leak_scan(home.data, stored)
    if leaks:
        raise Failure("\n".join(str(leak) for leak in leaks))
    size = sum(path.stat().st_size for path in files)
    print(f"None of {', '.join(map(repr, stored))} is in any of these {size} bytes.")


def show_status(home: Home) -> None:
    """Say of each node whether it runs."""
    for name in NODES:
        pid = home.pid(name)
        print(f"{name}: {f'runs (process {pid})' if pid else 'does not run'}")


def show_logs(home: Home) -> None:
    """Print what each node has logged."""
    for name in NODES:
        print(f"--- {name}")
        if home.log(name).exists():
            print(home.log(name).read_text(errors="replace"), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = ["init", "start", "run", "run-verbose", "stop", "status", "logs", "clean", "demo"]
    parser.add_argument("command", choices=commands)
    parser.add_argument("--port", type=_port, help=f"the sentinel's port (default {DEFAULT_PORT})")
    parser.add_argument(
        "--home", type=Path, default=EXAMPLE, help="where config, data and logs are (default: here)"
    )
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # what the client prints comes in between
    home = Home(arguments.home.resolve())
    actions = {
        "init": home.init,
        "start": lambda: home.start(arguments.port),
        "run": home.client,
        "run-verbose": lambda: home.client(verbose=True),
        "stop": home.stop,
        "status": lambda: show_status(home),
        "logs": lambda: show_logs(home),
        "clean": home.clean,
        "demo": lambda: demo(Home(home.path / ".demo"), arguments.port),
    }
    try:
        actions[arguments.command]()
    except Failure as failure:
        sys.exit(str(failure))


@contextlib.contextmanager
def _notify_socket() -> Iterator[socket.socket]:
    """Where a node says that it is ready, as sd_notify(3) describes."""
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        ready.bind(f"{directory}/notify")
        ready.settimeout(0.1)
        yield ready


def _admission_url(port: int) -> str:
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
