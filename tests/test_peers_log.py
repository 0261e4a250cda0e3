"""Lines of the log that contain what peers wrote: short, on one line, and not too many of them."""

import logging
from collections.abc import Iterator
from itertools import count

import pytest

from strongroom.peers_log import MAX_LINES, QUIET_SECONDS, peers_log

names = count()


class Lines(logging.Handler):
    """Keeps lines, and moves the time of the records."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> Iterator[logging.Logger]:
    log = peers_log(f"strongroom.test-{next(names)}")
    log.setLevel(logging.DEBUG)
    log.addHandler(lines)
    log.propagate = False
    yield log
    log.removeHandler(lines)


def test_what_a_peer_wrote_is_escaped_and_cut(log: logging.Logger, lines: Lines) -> None:
    log.info("%s sent %d of %s", "a\nb\x1b[31m", 3, "x" * 100_000)
    log.warning("failed: %s", ValueError("two\nlines"))
    assert lines.lines[0].startswith(r"a\nb\u001b[31m sent 3 of xxx")
    assert len(lines.lines[0]) < 400
    assert lines.lines[1] == r"failed: two\nlines"


def test_the_same_refusal_is_written_once_a_minute_with_a_count(
    log: logging.Logger, lines: Lines
) -> None:
    def refuse(who: str, at: float) -> None:
        record = log.makeRecord(log.name, logging.WARNING, "", 0, "%s was refused", (who,), None)
        record.created = at
        log.handle(record)

    for _ in range(50):
        refuse("raw", 1000.0)
    refuse("other", 1000.0)
    assert lines.lines == ["raw was refused", "other was refused"]
    refuse("raw", 1000.0 + QUIET_SECONDS)
    refuse("raw", 1000.0 + QUIET_SECONDS)
    assert lines.lines[2:] == ["raw was refused (and 49 more like it)"]


def test_a_peer_that_changes_its_name_writes_no_more(log: logging.Logger, lines: Lines) -> None:
    for number in range(500):
        log.warning("%s was refused", number)
    log.warning("something else")
    for _ in range(100):
        log.info("an event")
    assert len(lines.lines) == MAX_LINES + 1 + 100
