"""docs/threat-model.md names tests that exist, one at least for each line that refuses."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/threat-model.md").read_text()
TABLE = PAGE.partition("## What is refused in the directory")[0]
LINES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in re.findall(r"^\|.*\|$", TABLE, re.MULTILINE)[2:]
]
ATTACKERS = {
    "a web page in a browser on this machine",
    "another user of this machine",
    "a stranger on the network",
    "a child of the sentinel",
    "a peer behind another",
    "whoever holds the files, without the master key",
    "whoever runs the machine: root, and the node's own user",
}


def test_the_page_has_a_line_for_each_attacker() -> None:
    assert {line[0] for line in LINES} >= ATTACKERS
    assert {len(line) for line in LINES} == {5}


def test_each_test_that_the_page_names_exists() -> None:
    text = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)\(", text))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert named <= existing


def test_each_line_that_refuses_something_names_a_test() -> None:
    ours = [line for line in LINES if line[2] != "nothing" and "wss://" not in line[2]]
    assert len(ours) >= 9
    assert all("`test_" in line[4] for line in ours)
