"""How deeply JSON may be nested, so that no peer can exhaust a stack."""

from __future__ import annotations

import re
from typing import Final

MAX_DEPTH: Final = 64
"""Lists and objects within each other, in a value or in a field that a frame has beyond ours."""

TOO_DEEP: Final = f"it is nested more than {MAX_DEPTH} levels deep"

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_OTHERS = bytes(each for each in range(256) if each not in b'[]{}"\\')
_BRACKETS = bytes.maketrans(b"{}", b"[]")


def is_too_deep(data: bytes) -> bool:
    """Whether valid JSON is nested more than MAX_DEPTH levels deep."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    brackets = data.translate(_BRACKETS, _OTHERS).replace(b'""', b"")
    if b'"' in brackets:  # there are brackets or escapes in strings
        brackets = _STRING.sub(b"", data).translate(_BRACKETS, _OTHERS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    return bool(brackets)
