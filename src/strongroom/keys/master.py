"""The master key: where it comes from, and the root of a keystore that follows from it."""

from __future__ import annotations

import base64
import hmac
import os
import re
import secrets
import shlex
import subprocess
import unicodedata
from pathlib import Path

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from strongroom.errors import MasterKeyInvalid, MasterKeyMissing
from strongroom.keys.derive import PASSPHRASE, RANDOM_KEY, salt
from strongroom.settings import SECRETS, StorageSettings

MIN_PASSPHRASE = 12
COMMAND_SECONDS = 30
_MAKE_ONE = "Make one with: strongroom key new"


class MasterKey:
    """The secret that opens a node's keystore: 32 random bytes, or a passphrase.

    >>> MasterKey("correct horse battery staple")
    MasterKey(passphrase)
    """

    def __init__(self, text: str) -> None:
        """Take the key as its owner wrote it. It is never padded or shortened.

        Raises:
            MasterKeyInvalid: It is not a 32-byte key, and too short for a passphrase.
        """
        self._random = _decode(text)
        self._passphrase = unicodedata.normalize("NFC", text)
        if self._random is None and len(self._passphrase) < MIN_PASSPHRASE:
            raise MasterKeyInvalid(
                f"The master key has {len(text)} characters. It is 32 bytes as 43 characters of "
                "base64url or 64 hex digits, or a passphrase of at least "
                f"{MIN_PASSPHRASE} characters. {_MAKE_ONE}"
            )

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


def encode_key(secret: bytes) -> str:
    """The 32 bytes of a random key as base64url, its usual form."""
    return base64.urlsafe_b64encode(secret).decode().rstrip("=")


def read_master_key(settings: StorageSettings) -> MasterKey:
    """The master key from the source that the settings name.

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
    if not named:
        raise MasterKeyMissing(
            f"The profile {settings.profile} needs a master key. Set FAME_STORAGE_MASTER_KEY, "
            f"FAME_STORAGE_MASTER_KEY_FILE or FAME_STORAGE_MASTER_KEY_COMMAND. {_MAKE_ONE}"
        )
    if len(named) > 1:
        raise MasterKeyInvalid(f"{' and '.join(named)} are set. Keep one of them.")
    try:
        return MasterKey(_text(settings))
    except MasterKeyInvalid as error:
        raise MasterKeyInvalid(f"{named[0]}: {error}") from error.__cause__


def _text(settings: StorageSettings) -> str:
    if settings.master_key_file:
        return _from_file(settings.master_key_file)
    if settings.master_key_command:
        return _from_command(settings.master_key_command)
    return settings.master_key or ""


def _from_file(path: Path) -> str:
    try:
        return _without_final_newline(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise MasterKeyInvalid(f"{path} cannot be read: {error}") from error


def _from_command(command: str) -> str:
    try:
        completed = subprocess.run(  # noqa: S603  # the operator's own command, run without a shell
            shlex.split(command),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=True,
            env={name: text for name, text in os.environ.items() if name not in SECRETS},
        )
    except (OSError, ValueError) as error:
        raise MasterKeyInvalid(f"the command cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise MasterKeyInvalid(f"the command printed no key within {COMMAND_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        raise MasterKeyInvalid(
            f"the command ended with status {error.returncode}{': ' + lines[-1] if lines else ''}"
        ) from error
    return _without_final_newline(completed.stdout)


def _without_final_newline(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def _decode(text: str) -> bytes | None:
    """The 32 bytes of a random key in one of its two forms; None for any other text."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[A-Za-z0-9_-]{43}", text):
        decoded = base64.urlsafe_b64decode(text + "=")
        return decoded if encode_key(decoded) == text else None
    return None
