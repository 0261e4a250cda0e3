"""What a process remembers of records, so that an older value is noticed when it comes back."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from strongroom.errors import StoreRolledBack
from strongroom.storage.sealed.values import State

REMEMBERED = 100_000  # records
CLOCKS_APART = 600 * 1_000_000  # microseconds by which the clocks of writers may differ
_DELETED = 2**64  # a version after all others: nothing of a life that was deleted may come back
_ABSENT = 0
_UNKNOWN = -1


class Seen:
    """The newest known state of each record of a namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._states: OrderedDict[str, tuple[State, int]] = OrderedDict()
        self._moment = 0

    def moment(self) -> int:
        """To be asked when a request is sent: its answer may be older than what is noted later."""
        return self._moment

    def check(self, key: str, found: State, moment: int) -> None:
        """Note the state of a record in an answer to a request that was sent at `moment`.

        Raises:
            StoreRolledBack: It is older than what was known then.
        """
        known, noted = self._states.get(key, (found, 0))
        if noted > moment:
            return  # a later write has overtaken the answer
        is_older = (
            found.version < known.version
            if found.life == known.life
            else found.created < known.created - CLOCKS_APART
        )
        if is_older:
            raise StoreRolledBack(
                f"The server has put back an older state of the record {key!r} of "
                f"{self._namespace!r}.",
                remedy="find out who can write to the server, and restore the newer state",
                namespace=self._namespace,
            )
        self.note(key, found)

    def note(self, key: str, state: State) -> None:
        """Remember what was written, or found, unless more is known of the same life."""
        known, _ = self._states.get(key, (state, 0))
        if state.life == known.life and state.version < known.version:
            return
        self._moment += 1
        self._states[key] = (state, self._moment)
        self._states.move_to_end(key)
        if len(self._states) > REMEMBERED:
            self._states.popitem(last=False)

    def note_deleted(self, key: str, now: int) -> None:
        """Remember that this process has deleted a record."""
        known, _ = self._states.get(key, (State(b"", 0, now, None, 0), 0))
        self.note(
            key, msgspec.structs.replace(known, version=_DELETED, expires=None, revision=_ABSENT)
        )

    def doubt(self, key: str) -> None:
        """Note that another process has written the record: its revision is not known."""
        if found := self._states.get(key):
            state, noted = found
            self._states[key] = (msgspec.structs.replace(state, revision=_UNKNOWN), noted)

    def current(self, key: str, now: int) -> tuple[bool, State | None]:
        """Whether it is known what the next write continues, and what: None for a new record."""
        state, _ = self._states.get(key, (None, 0))
        if state is None or state.revision == _UNKNOWN:
            return False, None
        if state.revision == _ABSENT or (state.expires is not None and state.expires <= now):
            return True, None
        return True, state
