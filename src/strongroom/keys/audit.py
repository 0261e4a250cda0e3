"""The audit log: a line for each opening, rotation, drop and export, chained by a MAC.

The lines are in `__node_meta`. Their number, the newest MAC and the key of the MACs are in the
keystore. So a line that was changed, taken out or cut off is noticed, and nobody without the master
key can write one. A new line is saved in the keystore together with the change that it reports, and
waits there until it is in `__node_meta`: a kill in between loses neither.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence

import msgspec

from strongroom.errors import AuditBroken


class AuditLine(msgspec.Struct, frozen=True):
    """One event. It names namespaces, and holds no key and no value of a record."""

    number: int
    time: int
    event: str
    namespace: str | None
    detail: str
    mac: bytes = b""


class AuditChain(msgspec.Struct):
    """The end of the audit log, as the keystore keeps it."""

    key: bytes
    count: int = 0
    head: bytes = b""
    waiting: list[AuditLine] = []
    """Lines that may not be in `__node_meta` yet."""

    def add(self, now: int, event: str, namespace: str | None = None, detail: str = "") -> None:
        """Append a line."""
        self.count += 1
        line = AuditLine(self.count, now, event, namespace, detail)
        self.head = self._mac(self.head, line)
        self.waiting.append(msgspec.structs.replace(line, mac=self.head))

    def catch_up(self, newest: AuditLine, now: int) -> None:
        """Continue after `newest`, the last line in `__node_meta`.

        It is newer than this chain if an older copy of the keystore was put back.
        """
        if newest.number > self.count:
            self.count, self.head, self.waiting = newest.number, newest.mac, []
            self.add(now, "older keystore", detail=f"it knew less than {newest.number} lines")

    def cut(self, lines: Sequence[AuditLine]) -> int:
        """Go on after the sound ones of the stored `lines`. Returns how many those are."""
        count, head = 0, b""
        for line in lines:
            if line.number != count + 1 or self._mac(head, line) != line.mac:
                break
            count, head = line.number, line.mac
        self.count, self.head, self.waiting = count, head, []
        return count

    def forget_stored(self, newest: int) -> None:
        """Stop keeping the lines up to number `newest`, which are in `__node_meta` now."""
        self.waiting = [line for line in self.waiting if line.number > newest]

    def copy(self) -> AuditChain:
        """The end of the log as it is now."""
        return msgspec.structs.replace(self, waiting=list(self.waiting))

    def verify(self, lines: Sequence[AuditLine], *, growing: bool = False) -> int:
        """Compare the lines in `__node_meta` with the chain, and return their number.

        Args:
            lines: Read after this chain was copied.
            growing: The node is running: ignore lines that were added since the copy.

        Raises:
            AuditBroken: A line is missing, changed, cut off, or too many.
        """
        lines = lines[: self.count] if growing else lines
        count, head = 0, b""
        for line in (*lines, *(line for line in self.waiting if line.number > len(lines))):
            count += 1
            if line.number != count:
                raise AuditBroken(f"Line {count} of the audit log is missing.", remedy=_REMEDY)
            head = self._mac(head, line)
            if not hmac.compare_digest(head, line.mac):
                raise AuditBroken(f"Line {count} of the audit log was changed.", remedy=_REMEDY)
        if count < self.count:
            raise AuditBroken(
                f"The audit log ends at line {count}, and {self.count} were written.",
                remedy=_REMEDY,
            )
        if count > self.count or not hmac.compare_digest(head, self.head):
            raise AuditBroken(
                f"The audit log has {count} lines and the keystore knows {self.count} of them: an "
                f"older keystore was put back.",
                remedy=_REMEDY,
            )
        return count

    def _mac(self, before: bytes, line: AuditLine) -> bytes:
        text = msgspec.json.encode(msgspec.structs.replace(line, mac=b""))
        return hmac.digest(self.key, before + text, "sha256")


def new_audit_chain() -> AuditChain:
    """The chain of an empty log, with a new key."""
    return AuditChain(secrets.token_bytes(32))


_REMEDY = (
    "compare it with what you know of the time, and see who could write to the directory. "
    "The records of the stores are checked by: strongroom doctor. To go on with the lines that are "
    "sound: strongroom store accept __node_meta"
)
