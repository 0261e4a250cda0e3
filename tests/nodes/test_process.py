"""A node as a process leaves the program's own logging as it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SERVE = """
import asyncio, json, logging, logging.config, os, signal, sys
from strongroom import Sentinel

{setup}
loggers = [logging.getLogger(), logging.getLogger("strongroom")]
before = [(len(logger.handlers), logger.level) for logger in loggers]

async def serve():
    sentinel = asyncio.ensure_future(Sentinel().aserve({arguments}))
    await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    await sentinel

asyncio.run(serve())
after = [(len(logger.handlers), logger.level) for logger in loggers]
print(json.dumps([before, after]))
"""


def serve(setup: str, arguments: str = "", **variables: str) -> tuple[list[list[int]], ...]:
    """Handlers and levels of the root logger and of ours: before a sentinel serves, and after."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE.format(setup=setup, arguments=arguments)],
        env={"FAME_LISTENER_PORT": "0", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = json.loads(done.stdout)
    return before, after


@pytest.mark.parametrize(
    "setup",
    [
        "logging.basicConfig()",
        "logging.basicConfig(level=logging.ERROR)",
        "logging.getLogger().setLevel(logging.ERROR)",
        "logging.getLogger('strongroom').setLevel(logging.ERROR)",
        "logging.getLogger('strongroom').addHandler(logging.NullHandler())",
        "logging.config.dictConfig({'version': 1, 'loggers': {'strongroom': {'level': 'ERROR'}}})",
    ],
)
def test_logging_that_the_program_has_set_up_stays_as_it_is(setup: str) -> None:
    before, after = serve(setup, FAME_LOG_LEVEL="debug")
    assert after == before


def test_without_logging_of_its_own_a_program_logs_as_the_environment_says() -> None:
    assert serve("", FAME_LOG_LEVEL="error")[1] == [[1, 30], [0, 40]]
    assert serve("")[1] == [[1, 30], [0, 20]]


def test_a_level_that_the_program_asks_for_is_set() -> None:
    before, after = serve("logging.basicConfig()", 'log_level="debug"')
    assert after == [before[0], [0, 10]]


def test_a_peers_text_is_escaped_in_the_log_and_a_traceback_keeps_its_lines() -> None:
    script = """
import logging
from strongroom.nodes.process import set_up_log

set_up_log()
try:
    raise ValueError
except ValueError:
    logging.getLogger("strongroom").exception("from a peer: %s", "\\x1b[2J\\n\\u202efaked line")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    first, *traceback = done.stderr.splitlines()
    assert first.endswith(r"from a peer: \u001b[2J\n\u202efaked line")
    assert traceback[-1] == "ValueError"
