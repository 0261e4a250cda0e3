"""A damaged master key is refused with what was seen, and never becomes a passphrase."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.errors import MasterKeyInvalid, WrongMasterKey
from strongroom.keys import master
from strongroom.keys.master import MasterKey, new_master_key, read_master_key
from strongroom.keys.sheet import write_sheet
from strongroom.settings import StorageSettings
from support.files import fingerprint
from support.notes import contents, fill, provider_of

KEY = "b1xVWecobmAUNHhTOJISU_KHWTCNpjuupHUS-P_kF70"  # with few changes between kinds
HEX = "00112233445566778899aabbccddeeff" * 2

DAMAGED: dict[str, Callable[[str], str]] = {
    "quotes": lambda key: f'"{key}"',
    "a single quote before it": lambda key: f"'{key}",
    "typographic quotes": lambda key: f"\N{LEFT DOUBLE QUOTATION MARK}{key}\u201d",
    "a byte order mark": lambda key: f"\ufeff{key}",
    "a blank before it": lambda key: f" {key}",
    "a blank after it": lambda key: f"{key} ",
    "a no-break space": lambda key: f"{key}\xa0",
    "blanks within it": lambda key: f"{key[:20]} {key[20:]}",
    "its variable": lambda key: f"FAME_STORAGE_MASTER_KEY={key}",
    "a shell's export": lambda key: f"export key='{key}'",
    "a name in small letters": lambda key: f"master_key: {key}",
    "JSON": lambda key: f'{{"key":"{key}"}}',
    "a comment": lambda key: f"{key} # of the first node",
    "two lines": lambda key: f"{key}\n{key}",
    "a wrapped line": lambda key: f"{key[:20]}\n{key[20:]}",
    "a second newline": lambda key: f"{key}\n",
    "UTF-16 without a mark": lambda key: key.encode("utf-16-le").decode(),
    "a control character": lambda key: f"{key}\x07",
    "an escape sequence": lambda key: f"\x1b[1m{key}\x1b[0m",
    "an invisible character": lambda key: f"\u200b{key}",
    "the first character missing": lambda key: key[1:],
    "the last character missing": lambda key: key[:-1],
    "three characters missing": lambda key: key[:-3],
    "a character too many": lambda key: f"{key}a",
    "padding": lambda key: f"{key}=",
    "a semicolon": lambda key: f"{key};",
    "it twice": lambda key: key + key,
    "a character of another alphabet": lambda key: f"{key[:10]}!{key[11:]}",
    "a sheet": lambda key: write_sheet(MasterKey(key)),
}
PASSPHRASES = [
    "correct horse battery staple",
    "Correct Horse Battery Staple Seven Monkeys Go Up",
    "correct-horse-battery-staple-and-some-more-words",
    "e=mc2 is what einstein said",
    "It's 5 o'clock somewhere, isn't it?",
    "'twas brillig and the slithy toves",
    "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    "b81c99cf6b4d96bbd352042b1ffa87f05f5557a2",
    "Zk3wPq8Lr2Xv9Ty4Bn7Md1Hs",
    "contraseña muy larga, señor",
    "\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL} family of three",
]


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("key", [KEY, HEX], ids=["base64url", "hex"])
def test_a_damaged_key_is_refused_with_a_remedy_and_is_not_quoted(key: str, how: str) -> None:
    text = DAMAGED[how](key)
    with pytest.raises(MasterKeyInvalid) as caught:
        MasterKey(text)
    assert caught.value.remedy
    said = str(caught.value)
    assert not [at for at in range(len(key) - 6) if key[at : at + 6] in said]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" " * 20, "blanks only"),
        ("\n" * 20, "blanks only"),
        (f"{KEY}\n{KEY}\n{KEY}", "3 lines"),
        (f"\ufeff{KEY}", "byte order mark"),
        (f'"{KEY}"', "quotes"),
        (f"KEY={KEY}", "name of a variable"),
        (f"{KEY}\x1b", r"U\+001B"),
        (KEY[1:], "42 characters"),
        (f"{KEY[:-1]}/=", "44 characters"),
        ("a passphrase \udcff of mine", "UTF-8"),
        ("short", "5 characters"),
    ],
)
def test_the_error_says_what_was_seen(text: str, says: str) -> None:
    with pytest.raises(MasterKeyInvalid, match=says):
        MasterKey(text)


def test_what_is_not_utf_8_opens_nothing_either() -> None:
    with pytest.raises(MasterKeyInvalid, match="not UTF-8"):
        MasterKey("a passphrase \udcff of mine", existing=True)


@pytest.mark.parametrize("text", PASSPHRASES)
def test_a_passphrase_that_does_not_look_like_a_key_is_taken(text: str) -> None:
    assert repr(MasterKey(text)) == "MasterKey(passphrase)"


def settings_of(source: str, path: Path, content: bytes) -> StorageSettings:
    path.write_bytes(content)
    if source == "file":
        return StorageSettings(master_key_file=path)
    return StorageSettings(master_key_command=f"cat {path}")


@pytest.mark.parametrize("source", ["file", "command"])
def test_what_a_file_or_a_command_gives_is_read_as_utf_8(tmp_path: Path, source: str) -> None:
    def read(content: bytes) -> MasterKey:
        return read_master_key(settings_of(source, tmp_path / "key", content))

    for text in (f"{KEY}\n", f"{KEY}\r\n", KEY):
        assert read(text.encode()).text == KEY
    assert read("contraseña muy larga".encode()).text == "contraseña muy larga"
    for content, says in (
        (KEY.encode("utf-16"), "UTF-16"),
        (KEY.encode("utf-16-be"), "NUL"),
        (KEY.encode("utf-8-sig"), "byte order mark"),
        ("contraseña muy larga".encode("latin-1"), "not UTF-8"),
        (b"\n", "is empty"),
        (b"a" * 100_000, "65,536 bytes" if source == "file" else "printed more"),
    ):
        with pytest.raises(MasterKeyInvalid, match=says) as caught:
            read(content)
        assert f"FAME_STORAGE_MASTER_KEY_{source.upper()}" in str(caught.value)
        assert caught.value.remedy


def of_command(*script: str) -> MasterKey:
    command = f"{sys.executable} -c '{'; '.join(script)}'"
    return read_master_key(StorageSettings(master_key_command=command))


def test_a_command_ends_when_its_program_ends() -> None:
    begun = time.monotonic()
    started = of_command(
        "import subprocess", f'print("{KEY}", flush=True)', 'subprocess.Popen(["sleep", "20"])'
    )
    assert started.text == KEY
    assert time.monotonic() - begun < 10


def test_a_command_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master, "COMMAND_SECONDS", 0.5)
    with pytest.raises(MasterKeyInvalid, match=r"did not end within 0.5 s.*Try: "):
        of_command("import os, time", f'print("{KEY}", flush=True)', "os.close(1)", "time.sleep(9)")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("true", "printed nothing"),
        ("   ", "cannot be run"),
        ("'", "cannot be run"),
        ("/nowhere/at/all", "cannot be run"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"{KEY}\")'", "status 1"),
    ],
)
def test_a_command_that_fails_is_reported_without_what_it_wrote(
    command: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MasterKeyInvalid, match=says) as caught:
        read_master_key(StorageSettings(master_key_command=command))
    assert KEY not in str(caught.value) + "".join(capfd.readouterr())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", Path("k" * 300)):
        with pytest.raises(MasterKeyInvalid, match=r"cannot be read.*Try: "):
            read_master_key(StorageSettings(master_key_file=path))


async def test_no_keystore_is_made_under_a_damaged_key(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyInvalid, match="42 characters"):
        await fill(tmp_path / "data", "one", key=KEY[1:])
    assert not (tmp_path / "data").exists()


async def test_a_damaged_key_that_does_not_open_a_keystore_is_called_damaged(
    tmp_path: Path,
) -> None:
    for name, key in (("random", KEY), ("passphrase", "correct horse battery staple")):
        await fill(tmp_path / name, "one", key=key)
        before = fingerprint(tmp_path / name)
        with pytest.raises(MasterKeyInvalid, match="quotes"):
            await contents(tmp_path / name, key=f'"{KEY}"')
        with pytest.raises(WrongMasterKey):
            await contents(tmp_path / name, key=new_master_key())
        assert fingerprint(tmp_path / name) == before


async def test_a_damaged_key_that_an_earlier_version_took_still_opens_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(master, "damage", lambda _text: None)
        await fill(tmp_path, "one", key=f'"{KEY}"')
    assert list(await contents(tmp_path, key=f'"{KEY}"')) == ["one"]
    assert "in quotes" in caplog.text
    assert KEY not in caplog.text
    async with provider_of(tmp_path, KEY, previous_master_key=f'"{KEY}"'):
        pass
    assert list(await contents(tmp_path, key=KEY)) == ["one"]
