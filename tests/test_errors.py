"""Errors keep all that they say on their way to another process, and none of a library escapes."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import apsw
import picows
import pytest

from strongroom import errors
from strongroom.disk import database
from strongroom.errors import (
    AttachFailed,
    AttachRefused,
    StorageError,
    StoreDamaged,
    StoreUnavailable,
    StrongroomError,
)
from strongroom.messaging import link

SOURCE = Path(errors.__file__).parent
FIELDS: dict[str, Any] = {
    "what": "It went wrong.",
    "remedy": "set it right",
    "path": Path("data/notes.db"),
    "namespace": "notes",
    "key": "first",
    "expected": 3,
    "found": 4,
    "field": "text",
    "code": -32602,
    "data": {"type": "ValueError", "where": ["a", 1]},
}


def family(kind: type[StrongroomError] = StrongroomError) -> Iterator[type[StrongroomError]]:
    """Every class of the tree; those with several parents come several times."""
    yield kind
    for narrower in kind.__subclasses__():
        if narrower.__module__ == errors.__name__:
            yield from family(narrower)


FAMILY = list(dict.fromkeys(family()))


def example(kind: type[StrongroomError]) -> StrongroomError:
    """An error with all the fields that its class knows."""
    parameters = list(inspect.signature(kind.__init__).parameters)[1:]
    return kind(**{name: FIELDS[name] for name in parameters})


def through_json(error: StrongroomError) -> StrongroomError:
    return StrongroomError.from_json(json.loads(json.dumps(error.as_json())))


def through_pickle(error: StrongroomError) -> StrongroomError:
    rebuilt: StrongroomError = pickle.loads(pickle.dumps(error))
    return rebuilt


@pytest.mark.parametrize("way", [through_pickle, through_json, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_survives_with_all_its_fields(
    kind: type[StrongroomError], way: Callable[[StrongroomError], StrongroomError]
) -> None:
    error = example(kind)
    arrived = way(error)
    assert type(arrived) is kind
    assert vars(arrived) == vars(error)
    assert (str(arrived), arrived.args) == (str(error), error.args)
    assert arrived.what in str(arrived)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_says_what_happened_and_then_what_to_do(kind: type[StrongroomError]) -> None:
    error = example(kind)
    assert str(error) == f"{error.what} Try: {error.remedy}"
    error.remedy = None
    assert str(error) == error.what
    with pytest.raises(StrongroomError, match=r"went wrong|expected"):
        raise error


def fail() -> None:
    raise StoreDamaged("It is damaged.", remedy="the backup", path=Path("a.db"), namespace="a")


def test_an_error_arrives_from_a_worker_process() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers,
        pytest.raises(StoreDamaged) as caught,
    ):
        workers.submit(fail).result()
    error = caught.value
    assert (error.remedy, error.path, error.namespace) == ("the backup", Path("a.db"), "a")


def test_an_error_of_an_unknown_type_arrives_as_the_base() -> None:
    for name in ("NotInvented", "Path", "E"):
        error = StrongroomError.from_json({"type": name, "what": "It.", "remedy": None, "size": 3})
        assert type(error) is StrongroomError
        assert (str(error), error.size) == ("It.", 3)  # type: ignore[attr-defined]


def exceptions(module: Any) -> list[type[Exception]]:
    """Every exception class that a library exports."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]


DAMAGED = {apsw.NotADBError, apsw.CorruptError, apsw.FormatError}


@pytest.mark.parametrize("kind", exceptions(apsw), ids=lambda kind: kind.__name__)
def test_every_error_of_sqlite_becomes_one_of_ours(kind: type[Exception], tmp_path: Path) -> None:
    assert issubclass(kind, apsw.Error)  # what our code catches
    error = database.explain(kind("said SQLite"), tmp_path / "notes.db", "notes")
    assert type(error) is (StoreDamaged if kind in DAMAGED else StoreUnavailable)
    assert str(tmp_path / "notes.db") in error.what
    assert error.remedy
    assert isinstance(error, StorageError)


@pytest.mark.parametrize("kind", exceptions(picows), ids=lambda kind: kind.__name__)
async def test_every_error_of_the_websocket_library_becomes_one_of_ours(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert issubclass(kind, picows.WSError)  # what our code catches

    own = {} if kind is picows.WSError else inspect.signature(kind).parameters
    required = [p for p in own.values() if p.default is p.empty]
    error = kind(*["said picows"] * max(len(required), 1))

    async def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(picows, "ws_connect", refuse)
    with pytest.raises(AttachFailed) as caught:
        await link.dial("ws://127.0.0.1:1/")
    refused = issubclass(kind, picows.WSInvalidStatusError)
    assert type(caught.value) is (AttachRefused if refused else AttachFailed)
    assert "ws://127.0.0.1:1/" in caught.value.what


def test_only_errors_print_a_remedy() -> None:
    for path in SOURCE.rglob("*.py"):
        if path != SOURCE / "errors.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert "Try:" not in node.value, f"{path}, line {node.lineno}: pass remedy="
