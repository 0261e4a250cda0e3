"""Sentinel, agent and client as processes, configured by their environment alone."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from strongroom import Agent, Fabric, Settings
from strongroom.errors import AttachFailed, CallInterrupted, NoRoute
from support.processes import Program, attach_url, free_port, running


async def test_they_run_and_stop_at_sigterm_with_status_0(tmp_path: Path) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()
    async with running(hub, agent):
        await hub.start_and_wait(FAME_LISTENER_PORT=port)
        await agent.start_and_wait(FAME_DIRECT_ADMISSION_URL=attach_url(port))
        async with Fabric(Settings(admission_url=attach_url(port))):
            remote = Agent.remote_by_address("test@fame.fabric")
            assert await remote.echo("hello") == "hello"
            assert [item async for item in remote.numbers(100)] == list(range(100))
        assert await agent.stop(signal.SIGINT) == 0
        assert await hub.stop(signal.SIGTERM) == 0
    assert "Traceback" not in hub.log.read_text() + agent.log.read_text()


async def test_a_killed_agent_interrupts_its_calls_at_once_and_returns_as_itself(
    tmp_path: Path,
) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()
    kept = {
        "FAME_DIRECT_ADMISSION_URL": attach_url(port),
        "FAME_STORAGE_PROFILE": "sqlite",
        "FAME_STORAGE_DB_DIRECTORY": tmp_path / "data",
    }
    async with running(hub, agent):
        await hub.start_and_wait(FAME_LISTENER_PORT=port)
        await agent.start_and_wait(**kept)
        async with Fabric(Settings(admission_url=attach_url(port))):
            remote = Agent.remote_by_address("test@fame.fabric")
            assert await remote.increase() == 1
            call = asyncio.create_task(remote.hang())
            await asyncio.sleep(0.1)
            assert await agent.stop(signal.SIGKILL) == -signal.SIGKILL
            begun = time.monotonic()
            with pytest.raises(CallInterrupted):
                await call
            assert time.monotonic() - begun < 1
            with pytest.raises(NoRoute, match="away"):
                await remote.echo(1)
            await agent.start_and_wait(**kept)
            assert await remote.increase() == 2


@pytest.mark.slow
async def test_a_sentinel_comes_back_with_its_id_and_routes(tmp_path: Path) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()
    kept = {
        "FAME_LISTENER_PORT": port,
        "FAME_STORAGE_PROFILE": "sqlite",
        "FAME_STORAGE_DB_DIRECTORY": tmp_path / "data",
    }
    async with running(hub, agent):
        await hub.start_and_wait(**kept)
        await agent.start_and_wait(FAME_DIRECT_ADMISSION_URL=attach_url(port))
        await agent.stop()
        await hub.stop(signal.SIGKILL)
        hub_id = hub.log.read_text().partition(" /")[2].partition(" ")[0]
        await hub.start_and_wait(**kept)
        async with Fabric(Settings(admission_url=attach_url(port))) as fabric:
            assert fabric.path.startswith(f"/{hub_id}/")
            # The agent is known and away, which is not the same as unknown.
            with pytest.raises(NoRoute, match="away"):
                await Agent.remote_by_address("test@fame.fabric").echo(1)


@pytest.mark.parametrize(
    ("variables", "status", "words"),
    [
        ({"FAME_LISTENER_PORT": "http"}, 10, "FAME_LISTENER_PORT"),
        ({"FAME_LISTENER_HOST": "0.0.0.0"}, 10, "FAME_SECURITY_PROFILE=open"),
        ({"FAME_STORAGE_PROFILE": "papyrus"}, 13, "papyrus"),
        ({"FAME_LISTENER_PORT": "1", "FAME_LISTENER_HOST": "192.0.2.1"}, 10, "192.0.2.1"),
    ],
)
async def test_a_failed_start_prints_one_line_and_sets_the_exit_status(
    tmp_path: Path, variables: dict[str, str], status: int, words: str
) -> None:
    hub = Program("sentinel.py", tmp_path)
    await hub.start(**variables)
    assert await hub.wait() == status
    said = hub.log.read_text().splitlines()
    assert len(said) == 1
    assert said[0].startswith("strongroom: error: ")
    assert words in said[0]


async def test_a_taken_port_ends_the_sentinel_with_its_status(tmp_path: Path) -> None:
    first, second = Program("sentinel.py", tmp_path), Program("sentinel.py", tmp_path)
    port = free_port()
    async with running(first, second):
        await first.start_and_wait(FAME_LISTENER_PORT=port)
        await second.start(FAME_LISTENER_PORT=port)
        assert await second.wait() == 41


async def test_an_agent_without_its_sentinel_ends_with_its_status(tmp_path: Path) -> None:
    agent = Program("agent.py", tmp_path)
    await agent.start(FAME_DIRECT_ADMISSION_URL=attach_url(free_port()))
    assert await agent.wait() == 42
    assert "No sentinel answers" in agent.log.read_text()


async def test_an_agent_whose_start_fails_ends_with_status_1(tmp_path: Path) -> None:
    agent = Program("broken.py", tmp_path)
    await agent.start()
    assert await agent.wait() == 1
    assert "no way to start" in agent.log.read_text()


async def test_envelopes_are_shown_when_asked_for(tmp_path: Path) -> None:
    hub, agent = Program("sentinel.py", tmp_path), Program("agent.py", tmp_path)
    port = free_port()
    async with running(hub, agent):
        await hub.start_and_wait(FAME_LISTENER_PORT=port)
        await agent.start_and_wait(
            FAME_DIRECT_ADMISSION_URL=attach_url(port), FAME_SHOW_ENVELOPES="true"
        )
        await agent.stop()
    assert '"type":"AddressBind"' in agent.log.read_text()
    assert '"type":"AddressBindAck"' in agent.log.read_text()


async def test_a_sentinel_without_tls_that_is_dialled_with_tls_is_named_in_a_sentence() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = attach_url(server.sockets[0].getsockname()[1]).replace("ws:", "wss:")
        with pytest.raises(AttachFailed, match=r"\(\S.*wss:// needs a proxy with TLS"):
            await Fabric(Settings(admission_url=url)).start()
