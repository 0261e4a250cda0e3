"""Who may connect to a sentinel: no web page, no other user, nobody without the token."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from strongroom import Fabric, Sentinel, Settings
from strongroom.admission.door import is_own_process
from strongroom.errors import AttachFailed, AttachRefused, SettingsError
from strongroom.nodes import children
from support.fabrics import fabric, sentinel, url
from support.peer import PATH


async def status_of(hub: Sentinel, path: str = f"{PATH}raw", **headers: str) -> int:
    """The status with which an upgrade is answered; 101 for a link."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        async with connect(f"ws://127.0.0.1:{hub.port}{path}", additional_headers=named):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


async def get(hub: Sentinel, path: str, *headers: str) -> int:
    """The status of a plain request, with exactly these headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    lines = [f"GET {path} HTTP/1.1", *headers, "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode())
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:8000", "null", "", "https://example.org.evil"],
)
async def test_a_web_page_gets_no_link(origin: str) -> None:
    async with sentinel(allowed_origins=("https://example.org",)) as hub:
        assert await status_of(hub, Origin=origin) == 403
        assert await status_of(hub, Origin="https://example.org") == 101
        assert await status_of(hub) == 101


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8000", True),
        ("hub.internal:8000", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
async def test_a_request_under_a_foreign_name_is_refused(host: str, *, is_ours: bool) -> None:
    async with sentinel(allowed_hosts=("hub.internal",)) as hub:
        health = await get(hub, "/fame/v1/attach/health", f"Host: {host}")
        assert health == (200 if is_ours else 403)
        link = await get(hub, f"{PATH}raw", f"Host: {host}", *UPGRADE)
        assert link == (101 if is_ours else 403)


@pytest.mark.parametrize("child", ["a%0Ab", "a b", "..", "x" * 129, "a/b", "\u001b[31m"])
async def test_an_id_that_no_node_can_have_is_refused_before_anything_is_logged(
    child: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with sentinel() as hub:
        caplog.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        lines = [f"GET {PATH}{child} HTTP/1.1", "Host: localhost", *UPGRADE, "", ""]
        writer.write("\r\n".join(lines).encode())
        assert b"101" not in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert child not in caplog.text


async def test_a_token_is_checked_before_there_is_a_link() -> None:
    async with sentinel(admission_token="right") as hub:
        assert await status_of(hub) == 401
        assert await status_of(hub, Sec_WebSocket_Protocol="bearer, wrong") == 401
        assert await status_of(hub, Sec_WebSocket_Protocol="bearer") == 401
        assert not hub.children.links
        for token in (None, "wrong"):
            with pytest.raises(AttachRefused, match="the sentinel's FAME_ADMISSION_TOKEN"):
                await Fabric(Settings(admission_url=url(hub), admission_token=token)).start()
        async with fabric(hub, admission_token="right") as node:
            assert node.describe()["attached"]


CHILD = """
import encodings.idna, os, sys
from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed
os.setuid(int(sys.argv[2]))
with connect(sys.argv[1]) as link:
    try:  # the sentinel may have closed the link already
        link.send(b'{"id":"1","corrId":"c","frame":{"type":"NodeAttach","systemId":"raw"}}')
        print(link.recv().decode())
    except ConnectionClosed as error:
        print(error.rcvd.code, error.rcvd.reason)
"""


async def attach_as(hub: Sentinel, user: int) -> str:
    program = [sys.executable, "-c", CHILD, f"ws://127.0.0.1:{hub.port}{PATH}raw", str(user)]
    process = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
@pytest.mark.parametrize(
    ("settings", "is_admitted"),
    [({}, False), ({"security_profile": "open"}, True)],
)
async def test_processes_of_other_users_are_not_admitted(
    settings: dict[str, Any], *, is_admitted: bool
) -> None:
    async with sentinel(**settings) as hub:
        answer = await attach_as(hub, 65534)
        assert ('"ok":true' in answer) == is_admitted, answer
        assert is_admitted or "other users need FAME_ADMISSION_TOKEN" in answer
        assert '"ok":true' in await attach_as(hub, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_ones_own_processes_are_recognised(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        here = server.getsockname()[:2]
        with socket.create_connection(here) as client, server.accept()[0]:
            assert is_own_process(client.getsockname()[:2], here)
            assert not is_own_process((host, 1), here)  # nobody has this port


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own directory, on a system that does not say whose a connection is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(children, "system_names_owners", lambda: False)
    return tmp_path / ".strongroom"


async def test_elsewhere_nodes_of_the_same_user_find_a_token_that_the_sentinel_made(
    home: Path,
) -> None:
    async with sentinel() as hub:
        [file] = home.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert home.stat().st_mode & 0o777 == 0o700
        assert "other users need FAME_ADMISSION_TOKEN" in await attach_as(hub, os.geteuid())
        async with fabric(hub) as node:
            assert node.describe()["attached"]
        file.chmod(0o644)  # then it may be somebody else's
        with pytest.raises(AttachFailed):
            await fabric(hub).start()
    assert not list(home.iterdir())


async def test_no_token_is_made_where_one_is_set_or_all_are_admitted(home: Path) -> None:
    async with sentinel(security_profile="open"), sentinel(admission_token="t"):
        assert not home.exists()


async def test_a_sentinel_that_cannot_keep_its_token_does_not_start(home: Path) -> None:
    home.write_text("not a directory")
    with pytest.raises(SettingsError, match="FAME_ADMISSION_TOKEN"):
        await sentinel().start()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FAME_SECURITY_PROFILE", "gated"),
        ("FAME_SECURITY_PROFILE", "overlay"),
        ("FAME_SECURITY_PROFILE", "opne"),
        ("FAME_ADMISSION_PROFILE", "direct"),
        ("FAME_ADMISSION_PROFILE", "welcome"),
        ("FAME_AUTHORIZATION_PROFILE", "oauth2"),
    ],
)
def test_a_profile_that_is_not_implemented_stops_the_start(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable} is '{value}'"):
        Settings.from_environment({variable: value})


@pytest.mark.parametrize("value", ["open", "OPEN", "none", "noop"])
def test_profiles_that_ask_for_nothing_are_accepted(value: str) -> None:
    Settings.from_environment({"FAME_ADMISSION_PROFILE": value})
