"""Connections are encrypted where they should be, to the server that was meant, or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from strongroom.errors import EngineRefused, EngineUnreachable, SettingsError
from strongroom.settings import StorageSettings
from strongroom.storage import Write
from strongroom.storage.postgres import connections
from support.postgres import new_space, opened, server
from support.proxy import proxied


def certificate(directory: Path, address: str) -> Path:
    """A file with a key and a certificate for `address`, which it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{address}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@asynccontextmanager
async def speaking_tls(pem: Path) -> AsyncIterator[str]:
    """The URL of a proxy that speaks TLS before the server, which cannot."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    async with proxied(server().port, context) as proxy:
        yield server().url.replace(str(server().port), str(proxy.port))


async def test_a_server_with_the_right_certificate_is_spoken_to_over_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "127.0.0.1")
    async with (
        speaking_tls(pem) as url,
        opened(url, space=new_space(), tls_ca_file=pem) as provider,
    ):
        store = await provider.open("notes")
        await store.apply([Write("a", b"1")])


async def test_a_certificate_for_another_name_or_by_another_authority_is_refused(
    tmp_path: Path,
) -> None:
    pem, other = certificate(tmp_path, "127.0.0.1"), certificate(tmp_path, "127.0.0.2")
    for shown, trusted in ((pem, other), (other, other)):
        async with speaking_tls(shown) as url:
            with pytest.raises(EngineRefused, match="certificate is not accepted"):
                async with opened(url, tls_ca_file=trusted):
                    pass


async def test_nothing_is_sent_in_clear_to_a_server_that_should_speak_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "127.0.0.1")
    with pytest.raises(EngineUnreachable, match="SSL upgrade"):
        async with opened(server().url, tls_ca_file=pem, timeout_seconds=1):
            pass


@pytest.mark.parametrize(
    ("url", "is_encrypted"),
    [
        ("postgresql://user@127.0.0.1:5432/db", False),
        ("postgresql://user@localhost/db", False),
        ("postgresql://user@[::1]:5432/db", False),
        ("postgresql:///db", False),
        ("postgresql:///db?host=/run/postgresql", False),
        ("postgresql://user:pass@db.example.org/db", True),
        ("postgresql://user@localhost,db.example.org:5433/db", True),
        ("postgresql://user@localhost.example.org/db", True),
        ("postgresql://localhost@db.example.org/db", True),
        ("postgresql:///db?host=db.example.org", True),
        ("postgresql:///db?host=localhost,db.example.org", True),
    ],
)
def test_only_loopback_is_spoken_to_in_clear(url: str, is_encrypted: bool) -> None:  # noqa: FBT001
    settings = StorageSettings(url=url)
    assert bool(connections._ssl(settings)) is is_encrypted
    assert not connections._ssl(StorageSettings(url=url, tls=False))


def test_a_setting_of_another_profile_is_refused() -> None:
    async def start(**settings: Any) -> None:
        async with opened("postgresql://user@localhost/db", **settings):
            pass

    with pytest.raises(SettingsError, match="FAME_STORAGE_DB_DIRECTORY is set"):
        asyncio.run(start(directory=Path("data")))
    for wrong in ({"space": "Notes"}, {"space": "a" * 41}, {"pool": 1}):
        with pytest.raises(SettingsError, match="FAME_STORAGE_"):
            asyncio.run(start(**wrong))
