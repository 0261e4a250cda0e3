"""Messaging compared with its peers: three processes each, measured in one run.

    python benchmarks/fabric.py                     # all peers, as ratios
    python benchmarks/fabric.py stream 1000000      # memory of each process along a long stream
    python benchmarks/fabric.py cycles 1000         # what clients and agents leave behind

Peers: a bare relay on `websockets`, a bare relay on `picows`, and Naylence, when
STRONGROOM_NAYLENCE_PYTHON (or .venv/naylence) has it. A bare relay reads nothing of a message: it
is the limit, not a rival. All but Naylence run on uvloop when it is installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__)
PAYLOAD = "x" * 40
BARE_SIZE = 400
"""About the size of a FAME call in bytes, for the bare relays."""
SECONDS = 2.0
ITEMS = 50_000
ADDRESS = "bench@fame.fabric"

Call = Callable[[], Awaitable[Any]]


# --- the measure ------------------------------------------------------------------------------


async def measure(call: Call, stream: Callable[[int], Awaitable[int]], items: int) -> None:
    """Print what one client sees, as JSON."""
    await call()
    print(json.dumps({"first": time.time()}), flush=True)
    result: dict[str, float] = {}
    for callers in (1, 64):
        rate, p50, p99 = await hammer(call, callers)
        result |= {f"calls/s {callers}": rate, f"p50 ms {callers}": p50, f"p99 ms {callers}": p99}
    begun = time.perf_counter()
    assert await stream(items) == items
    result["items/s"] = items / (time.perf_counter() - begun)
    print(json.dumps(result), flush=True)


async def hammer(call: Call, callers: int) -> tuple[float, float, float]:
    took: list[float] = []
    end = time.perf_counter() + SECONDS

    async def one() -> None:
        while (begun := time.perf_counter()) < end:
            await call()
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*(one() for _ in range(callers)))
    cuts = statistics.quantiles(took, n=100)
    return len(took) / SECONDS, cuts[49] * 1000, cuts[98] * 1000


# --- strongroom -------------------------------------------------------------------------------


async def strongroom_hub(port: int) -> None:
    os.environ["FAME_LISTENER_PORT"] = str(port)
    from strongroom import Sentinel

    await Sentinel().aserve(log_level="warning")


async def strongroom_agent(port: int) -> None:
    from strongroom import BaseAgent, operation

    class Bench(BaseAgent[Any]):
        @operation
        async def echo(self, value: str) -> str:
            return value

        @operation(streaming=True)
        async def count(self, number: int) -> Any:
            for each in range(number):
                yield each

    os.environ["FAME_DIRECT_ADMISSION_URL"] = attach_url(port)
    await Bench().aserve(ADDRESS, log_level="warning")


async def strongroom_client(port: int) -> None:
    from strongroom import Agent, Fabric

    os.environ["FAME_DIRECT_ADMISSION_URL"] = attach_url(port)
    async with Fabric():
        remote = Agent.remote_by_address(ADDRESS)

        async def stream(number: int) -> int:
            count = 0
            async for _ in remote.count(number):
                count += 1
            return count

        await measure(lambda: remote.echo(PAYLOAD), stream, ITEMS)


def attach_url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/fame/v1/attach/ws/downstream"


# --- naylence ---------------------------------------------------------------------------------


async def naylence_hub(port: int) -> None:
    os.environ["FAME_LISTENER_PORT"] = str(port)
    from naylence.agent.configs import SENTINEL_CONFIG
    from naylence.fame.sentinel import Sentinel

    await Sentinel.aserve(root_config=SENTINEL_CONFIG, log_level="error")


async def naylence_agent(port: int) -> None:
    os.environ |= {"FAME_DIRECT_ADMISSION_URL": attach_url(port), "FAME_NODE_ID_SALT": "agent"}
    from naylence.agent import BaseAgent
    from naylence.agent.configs import NODE_CONFIG
    from naylence.fame.service import operation

    class Bench(BaseAgent):
        @operation
        async def echo(self, value: str) -> str:
            return value

        @operation(name="count", streaming=True)
        async def count(self, number: int) -> Any:
            for each in range(number):
                yield each

    await Bench().aserve(ADDRESS, root_config=NODE_CONFIG, log_level="error")


async def naylence_client(port: int) -> None:
    os.environ |= {"FAME_DIRECT_ADMISSION_URL": attach_url(port), "FAME_NODE_ID_SALT": "client"}
    from naylence.agent import Agent
    from naylence.agent.configs import CLIENT_CONFIG
    from naylence.fame.core import FameFabric

    async with FameFabric.create(root_config=CLIENT_CONFIG):
        remote = Agent.remote_by_address(ADDRESS)

        async def stream(number: int) -> int:
            return len([item async for item in await remote.count(number, _stream=True)])

        await measure(lambda: remote.echo(PAYLOAD), stream, 200)


# --- bare relays ------------------------------------------------------------------------------


class Pending:
    """The client's half of a bare relay: a number in front of each message."""

    def __init__(self, send: Callable[[bytes], Any]) -> None:
        self.send = send
        self.waiting: dict[bytes, asyncio.Future[None]] = {}
        self.number = 0
        self.items = 0
        self.end: asyncio.Future[None] | None = None

    def take(self, message: bytes) -> None:
        if message[:1] == b"s":
            self.items += 1
            if message[1:2] == b"e" and self.end is not None:
                self.end.set_result(None)
            return
        self.waiting.pop(message[:10]).set_result(None)

    async def call(self) -> None:
        self.number += 1
        head = b"%010d" % self.number
        answer = self.waiting[head] = asyncio.get_running_loop().create_future()
        sent = self.send(head + b"x" * BARE_SIZE)
        if sent is not None:
            await sent
        await answer

    async def stream(self, number: int) -> int:
        self.end = asyncio.get_running_loop().create_future()
        sent = self.send(b"s%d" % number)
        if sent is not None:
            await sent
        await self.end
        return self.items


async def websockets_hub(port: int) -> None:
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosedError

    links: dict[str, Any] = {}

    async def relay(link: Any) -> None:
        links[link.request.path] = link
        other = "/agent" if link.request.path == "/client" else "/client"
        with suppress(ConnectionClosedError):  # the agent's process is ended first
            async for message in link:
                await links[other].send(message)

    async with serve(relay, "127.0.0.1", port, compression=None):
        await asyncio.get_running_loop().create_future()


async def websockets_agent(port: int) -> None:
    from websockets.asyncio.client import connect

    async with connect(f"ws://127.0.0.1:{port}/agent", compression=None) as link:
        async for message in link:
            if message[:1] == b"s":
                number = int(message[1:])
                for each in range(number):
                    mark = b"se" if each == number - 1 else b"s."
                    await link.send(mark + b"x" * BARE_SIZE)
            else:
                await link.send(message)


async def websockets_client(port: int) -> None:
    from websockets.asyncio.client import connect

    async with connect(f"ws://127.0.0.1:{port}/client", compression=None) as link:
        pending = Pending(link.send)

        async def read() -> None:
            async for message in link:
                assert isinstance(message, bytes)
                pending.take(message)

        reader = asyncio.create_task(read())
        await measure(pending.call, pending.stream, ITEMS)
        reader.cancel()


async def picows_hub(port: int) -> None:
    import picows

    links: dict[bytes, Any] = {}

    class Relay(picows.WSListener):
        def on_ws_connected(self, transport: Any) -> None:
            links[transport.request.path] = transport
            self.other = b"/agent" if transport.request.path == b"/client" else b"/client"

        def on_ws_frame(self, _transport: Any, frame: Any) -> None:
            if frame.msg_type is picows.WSMsgType.BINARY:
                links[self.other].send(picows.WSMsgType.BINARY, frame.get_payload_as_bytes())

        def pause_writing(self) -> None:
            pass

        def resume_writing(self) -> None:
            pass

    await picows.ws_create_server(lambda _: Relay(), "127.0.0.1", port)
    await asyncio.get_running_loop().create_future()


async def picows_agent(port: int) -> None:
    import picows

    class Echo(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            message = frame.get_payload_as_bytes()
            if message[:1] != b"s":
                transport.send(picows.WSMsgType.BINARY, message)
                return
            number = int(message[1:])
            for each in range(number):
                mark = b"se" if each == number - 1 else b"s."
                transport.send(picows.WSMsgType.BINARY, mark + b"x" * BARE_SIZE)

        def pause_writing(self) -> None:
            pass

        def resume_writing(self) -> None:
            pass

    transport, _ = await picows.ws_connect(Echo, f"ws://127.0.0.1:{port}/agent")
    await transport.wait_disconnected()


async def picows_client(port: int) -> None:
    import picows

    class Client(picows.WSListener):
        def on_ws_frame(self, _transport: Any, frame: Any) -> None:
            pending.take(frame.get_payload_as_bytes())

    def send(message: bytes) -> None:
        transport.send(picows.WSMsgType.BINARY, message)

    pending = Pending(send)
    transport, _ = await picows.ws_connect(Client, f"ws://127.0.0.1:{port}/client")
    await measure(pending.call, pending.stream, ITEMS)


# --- running ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rss(pid: int) -> float:
    """Megabytes in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def nodes(peer: str, python: str) -> Iterator[tuple[int, list[subprocess.Popen[Any]]]]:
    """A hub and an agent of `peer`, ready or nearly so."""
    port = free_port()
    started: list[subprocess.Popen[Any]] = []
    try:
        for role in ("hub", "agent"):
            started.append(subprocess.Popen([python, HERE, f"{peer}_{role}", str(port)]))
            wait_for_port(port)
            time.sleep(3.0 if peer == "naylence" else 1.0)
        yield port, started
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def start(role: str, port: int) -> subprocess.Popen[Any]:
    return subprocess.Popen([sys.executable, HERE, role, str(port)])


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("nobody listens")


def run_peer(peer: str, python: str) -> dict[str, float]:
    with nodes(peer, python) as (port, started):
        idle = max(rss(process.pid) for process in started)
        begun = time.time()
        client = subprocess.run(
            [python, HERE, f"{peer}_client", str(port)], stdout=subprocess.PIPE, check=True
        )
    first, result = (json.loads(line) for line in client.stdout.splitlines() if line[:1] == b"{")
    result["first call s"] = first["first"] - begun
    result["idle MB"] = idle
    return dict(result)


def import_time(python: str, statement: str) -> float:
    def once(what: str) -> float:
        begun = time.perf_counter()
        subprocess.run([python, "-c", what], check=True)
        return time.perf_counter() - begun

    return min(once(statement) for _ in range(5)) - min(once("pass") for _ in range(5))


def libraries_of(statement: str) -> str:
    """The statement that imports what `statement` does, but none of our own modules."""
    real = "[k for k, m in sys.modules.items() if getattr(m, '__spec__', None)]"
    listing = f"{statement}; import sys; print(*{real})"
    names = subprocess.check_output([sys.executable, "-c", listing], text=True).split()
    others = [each for each in names if each.partition(".")[0] not in {"strongroom", "__main__"}]
    return f"from importlib import import_module as load; [*map(load, {others})]"


def find_naylence() -> str | None:
    named = os.environ.get("STRONGROOM_NAYLENCE_PYTHON")
    built = Path(sys.prefix) / "naylence/bin/python"
    return named or (str(built) if built.exists() else None)


def compare() -> None:
    peers = {"strongroom": sys.executable, "websockets": sys.executable, "picows": sys.executable}
    naylence = find_naylence()
    if naylence is not None:
        peers["naylence"] = naylence
    results = {peer: run_peer(peer, python) for peer, python in peers.items()}
    needed = "from strongroom import BaseAgent, Fabric, Sentinel, operation"
    results["strongroom"]["import s"] = import_time(sys.executable, needed)
    results["strongroom"]["its libraries s"] = import_time(sys.executable, libraries_of(needed))
    results["strongroom"]["bare import s"] = import_time(sys.executable, "import strongroom")
    if naylence is not None:
        results["naylence"]["import s"] = import_time(naylence, "import naylence.agent")
    report(results)


def report(results: dict[str, dict[str, float]]) -> None:
    others = [peer for peer in results if peer != "strongroom"]
    print(f"{'':16}{'strongroom':>12}" + "".join(f"{peer:>12}{'ratio':>8}" for peer in others))
    for name, own in results["strongroom"].items():
        line = f"{name:16}{own:12.3f}"
        for peer in others:
            other = results[peer].get(name)
            line += f"{'-':>12}{'':8}" if other is None else f"{other:12.3f}{own / other:8.2f}"
        print(line)


async def long_stream(port: int, number: int, started: list[subprocess.Popen[Any]]) -> None:
    from strongroom import Agent, Fabric, Settings

    async with Fabric(Settings(admission_url=attach_url(port))):
        count = 0
        print(f"{'items':>10}{'sentinel MB':>13}{'agent MB':>10}{'client MB':>11}{'items/s':>10}")
        begun = time.perf_counter()
        async for _ in Agent.remote_by_address(ADDRESS).count(number):
            count += 1
            if count % (number // 10) == 0:
                hub, agent = (rss(process.pid) for process in started)
                own = rss(os.getpid())
                rate = count / (time.perf_counter() - begun)
                print(f"{count:10}{hub:13.1f}{agent:10.1f}{own:11.1f}{rate:10.0f}", flush=True)


async def cycles(port: int, number: int, started: list[subprocess.Popen[Any]]) -> None:
    """Clients come, call, leave a stream and go; every 50 cycles the agent is killed."""
    from strongroom import Agent, Fabric, Settings
    from strongroom.errors import FabricError

    hub = started[0].pid
    print(f"{'cycles':>8}{'sentinel MB':>13}{'fds':>5}{'client MB':>11}{'fds':>5}")
    for cycle in range(1, number + 1):
        async with Fabric(Settings(admission_url=attach_url(port))):
            remote = Agent.remote_by_address(ADDRESS)
            while True:
                try:
                    await remote.echo(PAYLOAD)
                    break
                except FabricError:
                    await asyncio.sleep(0.02)
            async for item in remote.count(1000):
                if item == 50:
                    break
        if cycle % 50 == 0:
            started[1].kill()
            started[1].wait()
            started[1] = start("strongroom_agent", port)
        if cycle % (number // 10) == 0:
            own = os.getpid()
            line = f"{cycle:8}{rss(hub):13.1f}{fds(hub):5}{rss(own):11.1f}{fds(own):5}"
            print(line, flush=True)


def fds(pid: int) -> int:
    """Descriptors in use."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run(main: Any) -> None:
    if not sys.argv[1].startswith("naylence"):
        try:
            import uvloop
        except ImportError:
            pass
        else:
            uvloop.run(main)
            return
    asyncio.run(main)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        compare()
    elif sys.argv[1] in {"-h", "--help"}:
        print(__doc__)
    elif sys.argv[1] == "stream":
        with nodes("strongroom", sys.executable) as (port, started):
            run(long_stream(port, int(sys.argv[2]), started))
    elif sys.argv[1] == "cycles":
        with nodes("strongroom", sys.executable) as (port, started):
            run(cycles(port, int(sys.argv[2]), started))
    else:
        run(globals()[sys.argv[1]](int(sys.argv[2])))
