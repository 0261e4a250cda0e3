"""The server that the tests use is a real one: what it acknowledged outlives a hard kill."""

from __future__ import annotations

import asyncpg
import pytest

from support.postgres import PostgresServer


async def test_a_server_that_was_killed_starts_again_with_what_it_acknowledged(
    own_server: PostgresServer,
) -> None:
    own_server.start()
    connection = await asyncpg.connect(own_server.url)
    await connection.execute("CREATE TABLE note (text text); INSERT INTO note VALUES ('kept')")
    own_server.kill()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetch("SELECT 1")
    own_server.start()
    connection = await asyncpg.connect(own_server.url)
    assert await connection.fetchval("SELECT text FROM note") == "kept"
    await connection.close()
