"""The master key: where it comes from, and the root of a keystore that follows from it."""

from __future__ import annotations

import hmac
import os
import secrets
import shlex
import subprocess
import time
import unicodedata

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from strongroom.errors import MasterKeyInvalid, MasterKeyMissing
from strongroom.keys.derive import PASSPHRASE, RANDOM_KEY, salt
from strongroom.keys.text import damage, decode_key, encode_key
from strongroom.settings import SECRETS, StorageSettings, was_taken

MIN_PASSPHRASE = 12
MAX_BYTES = 64 * 1024
COMMAND_SECONDS = 30
_FORMS = (
    "32 bytes as 43 characters of base64url or 64 hex digits (strongroom key new makes them), or "
    f"a passphrase of at least {MIN_PASSPHRASE} characters"
)


class MasterKey:
    """The secret that opens a node's keystore: 32 random bytes, or a passphrase.

    >>> MasterKey("correct horse battery staple")
    MasterKey(passphrase)
    """

    def __init__(self, text: str, *, existing: bool = False) -> None:
        """Take the key as its owner wrote it. It is never padded or shortened.

        Args:
            text: The key.
            existing: Take it as a passphrase even if it looks like a damaged key: a keystore that
                an earlier version made may be under it. `doubt` then says what is wrong with it.

        Raises:
            MasterKeyInvalid: It is not a 32-byte key, and too short for a passphrase, or it looks
                like a damaged key.
        """
        self._random = decode_key(text)
        self.doubt = None if self._random else damage(text)
        if self.doubt and not (existing and len(text) >= MIN_PASSPHRASE):
            raise self.doubt
        self._passphrase = unicodedata.normalize("NFC", text)
        if self._random is None and len(self._passphrase) < MIN_PASSPHRASE:
            raise MasterKeyInvalid(f"The master key has {len(text)} characters.", remedy=_FORMS)

    def __repr__(self) -> str:
        return f"MasterKey({'passphrase' if self._random is None else 'random'})"

    @property
    def format(self) -> int:
        """The header format of a keystore made with this key."""
        return PASSPHRASE if self._random is None else RANDOM_KEY

    @property
    def secret(self) -> bytes:
        """The bytes of the random key or of the passphrase, as on a recovery sheet."""
        return self._random or self._passphrase.encode()

    @property
    def text(self) -> str:
        """The key in the form of FAME_STORAGE_MASTER_KEY."""
        return encode_key(self._random) if self._random else self._passphrase

    @property
    def fingerprint(self) -> str:
        """16 hex digits that distinguish a random key from others, and reveal nothing of it.

        A passphrase has no fingerprint: with one, anybody could test guesses quickly.
        """
        if self._random is None:
            return "(passphrase)"
        return hmac.digest(self._random, b"strongroom/fingerprint/v1", "sha256")[:8].hex()

    def root(self, format: int, file_id: bytes) -> bytes | None:  # noqa: A002
        """The 32-byte root of the keystore whose header has this format and file id.

        Format 1 is HKDF-Extract (RFC 5869) of the random key, format 2 Argon2id (RFC 9106, m = 64
        MiB, t = 3, p = 4) of the passphrase; the header's first 11 bytes are the salt. Returns None
        if the header needs a random key and this is a passphrase.
        """
        header_salt = salt(format, file_id)
        if format == PASSPHRASE:
            derive = Argon2id(
                salt=header_salt, length=32, iterations=3, lanes=4, memory_cost=64 * 1024
            )
            return derive.derive(self._passphrase.encode())
        return hmac.digest(header_salt, self._random, "sha256") if self._random else None


def new_master_key() -> str:
    """A new random master key, as 43 characters of base64url."""
    return encode_key(secrets.token_bytes(32))


def read_master_key(settings: StorageSettings, *, existing: bool = False) -> MasterKey:
    """The master key from the source that the settings name.

    Args:
        settings: Name the source.
        existing: The key opens a keystore that exists: see `MasterKey`.

    Raises:
        MasterKeyMissing: No source is named.
        MasterKeyInvalid: Two sources are named, the source failed, or it gave no valid key.
    """
    sources = {
        "FAME_STORAGE_MASTER_KEY": settings.master_key,
        "FAME_STORAGE_MASTER_KEY_FILE": settings.master_key_file,
        "FAME_STORAGE_MASTER_KEY_COMMAND": settings.master_key_command,
    }
    named = [name for name, value in sources.items() if value]
    if not named and was_taken("FAME_STORAGE_MASTER_KEY"):
        raise MasterKeyMissing(
            "A node took FAME_STORAGE_MASTER_KEY out of the environment before it started this "
            "program, as programs that an agent starts must not inherit it.",
            remedy="FAME_STORAGE_MASTER_KEY_FILE, which is inherited, or give the key to this "
            "program in StorageSettings(master_key=...)",
        )
    if not named:
        raise MasterKeyMissing(
            f"The profile {settings.profile} needs a master key, and no variable names one.",
            remedy="strongroom key new --out master.key, and set "
            "FAME_STORAGE_MASTER_KEY_FILE=master.key (or FAME_STORAGE_MASTER_KEY or "
            "FAME_STORAGE_MASTER_KEY_COMMAND)",
        )
    if len(named) > 1:
        raise MasterKeyInvalid(f"{' and '.join(named)} are set.", remedy="keep one of them")
    try:
        return MasterKey(_text(settings), existing=existing)
    except MasterKeyInvalid as error:
        raise MasterKeyInvalid(f"{named[0]}: {error.what}", remedy=error.remedy) from None


def _text(settings: StorageSettings) -> str:
    if settings.master_key_file:
        path = settings.master_key_file
        try:
            with path.open("rb") as file:
                return key_text(file.read(MAX_BYTES + 1))
        except OSError as error:
            raise MasterKeyInvalid(
                f"{path} cannot be read: {error.strerror}.", remedy="a file that this user can read"
            ) from None
    if settings.master_key_command:
        return key_text(_output(settings.master_key_command))
    return settings.master_key or ""


def key_text(read: bytes) -> str:
    """The text of a key as a file, standard input or a command gave it, without its last newline.

    Raises:
        MasterKeyInvalid: It is not UTF-8, or too long.
    """
    if len(read) > MAX_BYTES:
        raise MasterKeyInvalid(f"It has more than {MAX_BYTES:,} bytes.", remedy=_FORMS)
    try:
        text = read.decode()
    except UnicodeDecodeError:
        kind = "UTF-16" if read[:2] in {b"\xff\xfe", b"\xfe\xff"} else "not UTF-8"
        raise MasterKeyInvalid(
            f"The master key is {kind}.", remedy="save it again, as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _output(command: str) -> bytes:
    """What the operator's command prints until it ends. A child of it may keep the pipe open."""
    try:
        program = subprocess.Popen(  # noqa: S603  # run without a shell
            shlex.split(command) or [""],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may hold the key
            env={name: text for name, text in os.environ.items() if name not in SECRETS},
            bufsize=0,
        )
    except (OSError, ValueError) as error:
        raise _failed(f"cannot be run: {error}") from None
    with program:
        try:
            output = _read_until_end(program)
        finally:
            program.kill()
    if len(output) > MAX_BYTES:
        raise _failed(f"printed more than {MAX_BYTES:,} bytes")
    if program.returncode != 0:
        raise _failed(f"ended with status {program.returncode}")
    if not output:
        raise _failed("printed nothing")
    return output


def _read_until_end(program: subprocess.Popen[bytes]) -> bytes:
    assert program.stdout is not None
    os.set_blocking(program.stdout.fileno(), False)
    deadline, output, running = time.monotonic() + COMMAND_SECONDS, b"", True
    while running and len(output) <= MAX_BYTES:
        if time.monotonic() > deadline:
            raise _failed(f"did not end within {COMMAND_SECONDS} s")
        running = program.poll() is None
        output += program.stdout.read(MAX_BYTES) or b""
        time.sleep(0.01 * running)
    return output


def _failed(how: str) -> MasterKeyInvalid:
    return MasterKeyInvalid(f"The command {how}.", remedy="run it by hand, as the node's user")
