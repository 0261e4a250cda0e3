"""A real browser on the same machine, with a page of somebody else, gets no link to a sentinel."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from strongroom import Sentinel
from support.fabrics import sentinel
from support.processes import free_port

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]

PAGE = """<!doctype html><title>Somebody else's page</title><script>
const hub = "HUB", seen = {};
function attach(id, binary) {
  const text = JSON.stringify({id: "1", corrId: "c", frame: {type: "NodeAttach", systemId: id}});
  return new Promise(done => {
    const link = new WebSocket("ws://" + hub + "/fame/v1/attach/ws/downstream/" + id);
    link.binaryType = "arraybuffer";
    link.onopen = () => link.send(binary ? new TextEncoder().encode(text) : text);
    link.onmessage = event => done(new TextDecoder().decode(event.data));
    link.onclose = event => done("closed " + event.code);
  });
}
async function attempt() {
  try {
    seen.fetch = await (await fetch("http://" + hub + "/fame/v1/attach/health")).text();
  } catch (error) { seen.fetch = "refused"; }
  seen.text = await attach("text", false);
  seen.binary = await attach("binary", true);
  await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
}
attempt();
</script>"""


class PageServer:
    """The web server of the page, to which the page reports what it could do."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = b""
        if head.startswith("POST /report"):
            [length] = [line for line in head.lower().split("\r\n") if "content-length" in line]
            self.report.set_result(json.loads(await reader.readexactly(int(length.split()[1]))))
        elif head.startswith("GET / "):
            body = self.page.encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()


@asynccontextmanager
async def browsing(url: str, profile: Path) -> AsyncIterator[None]:
    """Show a page in a headless browser, for which all names under .example are this machine."""
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        BROWSER,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--host-resolver-rules=MAP *.example 127.0.0.1", f"--user-data-dir={profile}", url),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def what_a_page_can_do(hub: Sentinel, page: str, name: str, profile: Path) -> dict[str, Any]:
    """Load a page from `page`, a host and port; it dials the sentinel under `name`."""
    served = PageServer(PAGE.replace("HUB", f"{name}:{hub.port}"))
    server = await asyncio.start_server(served.answer, "127.0.0.1", page.rpartition(":")[2])
    try:
        async with browsing(f"http://{page}/", profile), asyncio.timeout(30):
            return await served.report
    finally:
        server.close()


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1", "127.0.0.1"),  # another port of this machine is another origin
        ("page.example", "127.0.0.1"),
        ("page.example", "localhost"),
        ("page.example", "page.example"),  # DNS rebinding: its own name leads to the sentinel
    ],
)
async def test_a_page_in_a_browser_gets_no_link_and_reads_nothing(
    host: str, name: str, tmp_path: Path
) -> None:
    async with sentinel() as hub:
        seen = await what_a_page_can_do(hub, f"{host}:{free_port()}", name, tmp_path)
        assert seen == {"fetch": "refused", "text": "closed 1006", "binary": "closed 1006"}
        assert not hub.children.links


async def test_a_page_that_is_allowed_gets_a_link(tmp_path: Path) -> None:
    page = f"page.example:{free_port()}"
    async with sentinel(allowed_origins=(f"http://{page}",)) as hub:
        seen = await what_a_page_can_do(hub, page, "127.0.0.1", tmp_path)
        assert '"ok":true' in seen["text"]
        assert '"ok":true' in seen["binary"]
