"""What signals do to the nodes of a process, and to the program around them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

AGENTS = """
    import asyncio, signal, sys, threading, time
    from strongroom import BaseAgent, Fabric

    class Agent(BaseAgent):
        async def start(self):
            print("started", flush=True)

        async def stop(self):
            print("stopped", flush=True)
"""


def start(program: str, tmp_path: Path) -> subprocess.Popen[str]:
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(AGENTS) + textwrap.dedent(program))
    environ = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, file],
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def lines_until(process: subprocess.Popen[str], line: str, times: int = 1) -> None:
    assert process.stdout is not None
    while times:
        got = process.stdout.readline()
        assert got, "the program ended"
        times -= got.strip() == line
    time.sleep(0.3)  # until the signal handlers are in place


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("runner", ["asyncio.run", "uvloop.run"])
def test_all_agents_of_a_process_stop_at_a_signal(
    number: signal.Signals, runner: str, tmp_path: Path
) -> None:
    program = f"""
        import uvloop

        async def main():
            await asyncio.gather(*(Agent().aserve(f"a{{n}}@fame.fabric") for n in range(3)))
            print("main continues", flush=True)

        {runner}(main())
        print("the end", flush=True)
    """
    process = start(program, tmp_path)
    lines_until(process, "started", 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert output.count("stopped") == 3
    assert output.splitlines()[-2:] == ["main continues", "the end"]
    assert process.returncode == 0


def test_the_programs_own_handlers_run_too_and_are_put_back(tmp_path: Path) -> None:
    program = """
        def handler(number, frame):
            print("the program's handler", flush=True)

        async def main():
            signal.signal(signal.SIGTERM, handler)
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGINT, lambda: print("the loop's handler", flush=True)
            )
            await Agent().aserve("a@fame.fabric")
            print(signal.getsignal(signal.SIGTERM) is handler, flush=True)
            await asyncio.sleep(5)

        asyncio.run(main())
    """
    process = start(program, tmp_path)
    lines_until(process, "started")
    process.send_signal(signal.SIGTERM)
    lines_until(process, "the program's handler")
    lines_until(process, "True")
    process.send_signal(signal.SIGTERM)
    lines_until(process, "the program's handler")
    process.kill()
    process.communicate()


def test_the_loops_own_handler_runs_too(tmp_path: Path) -> None:
    program = """
        async def main():
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGTERM, lambda: print("the loop's handler", flush=True)
            )
            await Agent().aserve("a@fame.fabric")
            await asyncio.sleep(0.1)

        asyncio.run(main())
    """
    process = start(program, tmp_path)
    lines_until(process, "started")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert "stopped" in output
    assert "the loop's handler" in output


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    program = """
        class Slow(Agent):
            async def stop(self):
                print("stopping", flush=True)
                await asyncio.sleep(60)

        asyncio.run(Slow().aserve("a@fame.fabric"))
    """
    process = start(program, tmp_path)
    lines_until(process, "started")
    process.send_signal(signal.SIGTERM)
    lines_until(process, "stopping")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == -signal.SIGTERM


def test_an_agent_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    program = """
        threading.Thread(
            target=lambda: asyncio.run(Agent().aserve("a@fame.fabric")), daemon=True
        ).start()
        time.sleep(60)
    """
    process = start(program, tmp_path)
    lines_until(process, "started")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == -signal.SIGTERM
