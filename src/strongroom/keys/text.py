"""How a random key is written, and what tells a damaged one from a passphrase.

A key that lost a character, or that has quotes or its variable's name around it, would otherwise
become a passphrase without a word. Errors say what was seen, and never quote the key.
"""

from __future__ import annotations

import base64
import itertools
import re
import unicodedata

from strongroom.errors import MasterKeyInvalid

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u201e\xab\xbb"
_AROUND = re.compile(rf"[\s{_QUOTES}=:,;<>(){{}}\[\]]+")
WRONG_CHARACTERS = 2
"""Number of characters outside the alphabet that a key with mistakes may have."""
_VARIABLE = re.compile(r"(export |set |\$env:)?\s*[A-Z][A-Z0-9_]{2,}\s*=|(export|set) \w+=")
_JOINERS = {"\u200c", "\u200d"}  # a part of words in some scripts, and of emoji


def encode_key(secret: bytes) -> str:
    """The 32 bytes of a random key as base64url, its usual form."""
    return base64.urlsafe_b64encode(secret).decode().rstrip("=")


def decode_key(text: str) -> bytes | None:
    """The 32 bytes of a random key in one of its two forms; None for any other text."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[A-Za-z0-9_-]{43}", text):
        decoded = base64.urlsafe_b64decode(text + "=")
        return decoded if encode_key(decoded) == text else None
    return None


def damage(text: str) -> MasterKeyInvalid | None:
    """Why a text that is not a random key is not a passphrase either; None if it may be one.

    Raises:
        MasterKeyInvalid: It is not UTF-8. No version took that as a passphrase.
    """
    if any(unicodedata.category(character) == "Cs" for character in text):
        raise MasterKeyInvalid("The master key is not UTF-8.", remedy="save it again, as UTF-8")
    for look in (_encoding, _lines, _surroundings):
        if seen := look(text):
            what, remedy = seen
            return MasterKeyInvalid(f"The master key {what}.", remedy=remedy)
    if any(_is_nearly_key(part) for part in [*_AROUND.split(text), text]):
        return MasterKeyInvalid(
            f"The master key looks like a random key, but is not one: it has {len(text)} "
            "characters, and a random key is exactly 43 characters of base64url or 64 hex digits.",
            remedy="copy the key again, whole and without anything around it. A passphrase that "
            "looks like this needs a few blanks between its words",
        )
    return None


def _encoding(text: str) -> tuple[str, str] | None:
    if text.startswith("\ufeff"):
        return "begins with a byte order mark", "save it as UTF-8 without a byte order mark"
    if "\0" in text:
        return "has NUL characters, as UTF-16 has", "save it again, as UTF-8"
    if "\ufffd" in text:
        return "was not UTF-8 once", "save it again, as UTF-8"
    return None


def _lines(text: str) -> tuple[str, str] | None:
    if not text:
        return "is empty", "strongroom key new"
    if text.isspace():
        return "consists of blanks only", "strongroom key new"
    if "strongroom recovery sheet" in text:
        return "is a recovery sheet", "strongroom key sheet --read SHEET --out master.key"
    if (lines := text.splitlines()) != [text]:
        many = f"has {len(lines)} lines" if len(lines) > 1 else "ends in a newline"
        return many, "the key alone, in one line"
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cf"} and character not in _JOINERS:
            # Flags in emoji are spelt with invisible letters.
            if "\U000e0020" <= character <= "\U000e007f":
                continue
            seen = f"has the control character U+{ord(character):04X}"
            return seen, "type it again without that character"
    return None


def _surroundings(text: str) -> tuple[str, str] | None:
    if text != text.strip():
        return "has blanks before or after it", "remove them"
    if text[0] in _QUOTES and text[-1] in _QUOTES:
        return "is in quotes", "remove the quotes"
    if _VARIABLE.match(text):
        return "begins with the name of a variable", "what comes after the ="
    if text[0] == "{" and text[-1] == "}":
        return "is in braces, as JSON is", "the key alone, without braces and quotes"
    return None


def _is_nearly_key(text: str) -> bool:
    """Whether a text is a random key with blanks in it, or with a few characters wrong."""
    compact = re.sub(r"[\s:.-]", "", text)
    wrong_digits = re.sub(r"[0-9a-fA-F]", "", compact)
    if re.fullmatch(r".{60,68}|.{124,132}", compact) and len(wrong_digits) <= WRONG_CHARACTERS:
        return True
    wrong = re.sub(r"[A-Za-z0-9_+/=-]", "", text)
    near = re.fullmatch(r".{40,47}|.{83,90}", text)  # one key, or it twice
    in_parts = decode_key(re.sub(r"[\s=]", "", text))
    return _looks_random(text) and bool(in_parts or (near and len(wrong) <= WRONG_CHARACTERS))


def _looks_random(text: str) -> bool:
    """How often neighbours differ in kind: of a random key's, 62 % do, of words' less than 34 %."""
    kinds = ["A" if c.isupper() else "a" if c.islower() else "1" for c in text if c.isalnum()]
    if not {"A", "a"} <= set(kinds):
        return False
    changes = [before != after for before, after in itertools.pairwise(kinds)]
    return sum(changes) / len(changes) > (0.22 if "1" in kinds else 0.34)
