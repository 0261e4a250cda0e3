from collections.abc import Iterator

import pytest

from support.postgres import PostgresServer


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server for one test, which may kill it."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()
