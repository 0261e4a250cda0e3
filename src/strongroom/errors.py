"""Every error that Strongroom raises, in one tree.

    StrongroomError
    ├── NotStarted                  a provider or a node was used before it was started
    ├── SettingsError               a FAME_* variable is missing or cannot be understood
    │   ├── MasterKeyMissing        the profile is encrypted and no master key was given
    │   ├── MasterKeyInvalid        the master key is too short, or its source failed
    │   └── UnknownProfile          FAME_STORAGE_PROFILE names no provider
    ├── StorageError
    │   ├── DirectoryError          the data directory as a whole cannot be used
    │   │   ├── DirectoryInUse      another process owns it
    │   │   ├── FilesystemUnsafe    its filesystem cannot keep what a store promises
    │   │   ├── ProfileMismatch     plain files under the encrypted profile, or the reverse
    │   │   ├── WrongMasterKey      the keystore opens with another master key
    │   │   ├── KeystoreMissing     encrypted files, and no keystore to open them with
    │   │   └── KeystoreOlder       an older keystore was put in the place of the current one
    │   ├── StoreError              one file cannot be used
    │   │   ├── StoreMissing        the keystore knows the store, its file is gone
    │   │   ├── StoreDamaged        bytes that were never valid
    │   │   ├── StoreNotEncrypted   a plain SQLite file in the place of an encrypted one
    │   │   ├── ForeignStore        a file of another node
    │   │   ├── StoreSwapped        a file of another namespace of this node
    │   │   ├── StoreRolledBack     an older copy of the file was put back
    │   │   ├── FormatUnsupported   written by a newer Strongroom
    │   │   ├── StoreUnavailable    the disk refused (full, read-only, I/O error, file gone)
    │   │   ├── StoreClosed         used after close
    │   │   └── StoreForked         used in a child process after a fork
    │   ├── EngineUnsuitable        the installed SQLite cannot encrypt
    │   ├── OwnerUnreachable        a running node was to be asked, and does not answer
    │   ├── AuditBroken             the audit log lacks a line, or one was changed
    │   ├── ImportInvalid           a line of an export cannot be read
    │   ├── Unhealthy               doctor found something that needs a hand
    │   ├── InvalidNamespace
    │   ├── InvalidKey
    │   ├── ValueTooLarge
    │   ├── RevisionConflict        the record changed, a condition does not hold
    │   │   └── KeyExists           create() of a key that is there
    │   ├── KeyMissing              update() of a key that is not there (also a KeyError)
    │   ├── RecordInvalid           a record does not fit its model
    │   ├── WatchExpired            the cursor is older than the deletions remembered
    │   └── NotSupported            the provider declares that it lacks the feature
    └── FabricError
        ├── NoFabric                no fabric is current here
        ├── InvalidAddress
        ├── ListenFailed            the listener's port cannot be had
        ├── AttachFailed            the sentinel cannot be reached, or did not answer
        │   └── AttachRefused       it answered no
        ├── ProtocolError           a peer sent what FAME does not allow
        ├── MessageTooLarge
        └── CallError               a remote operation gave no result
            ├── NoRoute             nobody is bound to the address; nothing ran
            ├── CallTimeout         no answer within the deadline; it may have run
            ├── CallInterrupted     the agent or the link went in mid-call; it may have run
            ├── UnknownOperation    the agent has no such operation
            ├── InvalidArguments    the arguments do not fit the operation
            ├── OperationFailed     the operation raised
            └── StreamStalled       the reader of a stream took nothing for too long

Each says what happened (`what`), what to do next (`remedy`), and carries the facts as attributes.
`exit_code` is the status with which a node or a command ends when the error reaches its top;
docs/errors.md holds the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar


class StrongroomError(Exception):
    """The base of all errors of this package.

    >>> error = StrongroomError("The disk is full.", remedy="make room, then start the node again")
    >>> str(error)
    'The disk is full. Try: make room, then start the node again'

    Args:
        what: A sentence that says what happened.
        remedy: What the reader can do about it, to be printed after "Try:".
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} Try: {self.remedy}" if self.remedy else self.what

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are copied and pickled by calling their class with `args`, which lacks fields.
        return _rebuilt, (type(self), dict(vars(self)))

    def as_json(self) -> dict[str, Any]:
        """This error as a JSON object: its type, `what`, `remedy`, and its other fields."""
        fields = {name: _plain(value) for name, value in vars(self).items() if name[0] != "_"}
        return {"type": type(self).__name__, **fields}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> StrongroomError:
        """The error that `as_json` described; a StrongroomError where its type is not known here.

        >>> error = StoreMissing("notes.db is missing.", path=Path("notes.db"))
        >>> StrongroomError.from_json(error.as_json()).path
        PosixPath('notes.db')
        """
        fields = dict(fields)
        kind = globals().get(fields.pop("type"))
        if not (isinstance(kind, type) and issubclass(kind, StrongroomError)):
            kind = StrongroomError
        if fields.get("path") is not None:
            fields["path"] = Path(fields["path"])
        return _rebuilt(kind, fields)


E = TypeVar("E", bound=StrongroomError)


def _rebuilt(kind: type[E], fields: dict[str, Any]) -> E:
    error = kind.__new__(kind, fields["what"])
    vars(error).update(fields)
    return error


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class NotStarted(StrongroomError):
    """A provider or a node was used before it was started."""


# --- settings ---------------------------------------------------------------------------------


class SettingsError(StrongroomError):
    """A FAME_* variable is missing or cannot be understood."""

    exit_code = 10


class MasterKeyMissing(SettingsError):
    """The storage profile is encrypted and no master key was given."""

    exit_code = 11


class MasterKeyInvalid(SettingsError):
    """The master key is too short or malformed, or the file or command that holds it failed."""

    exit_code = 12


class UnknownProfile(SettingsError):
    """FAME_STORAGE_PROFILE names no provider, or one that cannot be loaded."""

    exit_code = 13


# --- storage ----------------------------------------------------------------------------------


class StorageError(StrongroomError):
    """The base of all errors of storage."""

    exit_code = 20


class DirectoryError(StorageError):
    """The data directory as a whole cannot be used. `path` is the directory or the file in it."""

    def __init__(self, what: str, *, remedy: str | None = None, path: Path | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.path = path


class DirectoryInUse(DirectoryError):
    """Another process owns the data directory."""

    exit_code = 21


class FilesystemUnsafe(DirectoryError):
    """The filesystem cannot keep what a store promises."""

    exit_code = 22


class ProfileMismatch(DirectoryError):
    """The directory holds plain files and the profile is encrypted, or the reverse."""

    exit_code = 23


class WrongMasterKey(DirectoryError):
    """The keystore was made under another master key."""

    exit_code = 24


class KeystoreMissing(DirectoryError):
    """The directory holds encrypted stores, and no keystore to open them with."""

    exit_code = 25


class KeystoreOlder(DirectoryError):
    """An older copy of the keystore stands in the place of the current one."""

    exit_code = 26


class StoreError(StorageError):
    """One store cannot be used. `path` is its file, `namespace` its name, where they are known."""

    def __init__(
        self,
        what: str,
        *,
        remedy: str | None = None,
        path: Path | None = None,
        namespace: str | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.path = path
        self.namespace = namespace


class StoreMissing(StoreError):
    """The keystore knows the store, and its file is not there."""

    exit_code = 27


class StoreDamaged(StoreError):
    """The file holds bytes that were never valid."""

    exit_code = 28


class StoreNotEncrypted(StoreError):
    """A plain SQLite file stands in the place of an encrypted one."""

    exit_code = 29


class ForeignStore(StoreError):
    """The file belongs to another node, or to a newer keystore than the one here."""

    exit_code = 30


class StoreSwapped(StoreError):
    """The file belongs to another namespace of this node."""

    exit_code = 31


class StoreRolledBack(StoreError):
    """The file is an older copy of the store."""

    exit_code = 32


class FormatUnsupported(StoreError):
    """The file's format is unknown to this version."""

    exit_code = 33


class StoreUnavailable(StoreError):
    """The disk refused: full, read-only, an I/O error, or the file is gone from its place."""

    exit_code = 34


class StoreClosed(StoreError):
    """The store was used after it was closed."""


class StoreForked(StoreError):
    """The store was used in a child process after a fork."""


class EngineUnsuitable(StorageError):
    """The installed SQLite cannot encrypt, or not in the way that the file format needs."""

    exit_code = 35


class OwnerUnreachable(StorageError):
    """A running node was to be asked over its admin socket, and there is none, or no answer."""

    exit_code = 36


class AuditBroken(StorageError):
    """The audit log lacks a line, or one was changed."""

    exit_code = 37


class ImportInvalid(StorageError):
    """A line that was to be imported cannot be read; nothing was stored."""

    exit_code = 38


class Unhealthy(StorageError):
    """`strongroom doctor` found something that needs a hand."""

    exit_code = 39


class InvalidNamespace(StorageError, ValueError):
    """The namespace's name is not allowed, or differs from another's only in case."""


class InvalidKey(StorageError, ValueError):
    """A key is a string of 1 to 1024 UTF-8 bytes without NUL and lone surrogates."""


class ValueTooLarge(StorageError, ValueError):
    """The encoded record is larger than the store takes."""


class RevisionConflict(StorageError):
    """A condition does not hold: the record is at revision `found` (0: absent), not `expected`."""

    def __init__(self, key: str, *, expected: int, found: int) -> None:
        is_at = f"is at revision {found}" if found else "does not exist"
        wanted = f"revision {expected}" if expected else "no record"
        super().__init__(
            f"{key!r} {is_at}, but {wanted} was expected.", remedy="read it again and retry"
        )
        self.key = key
        self.expected = expected
        self.found = found


class KeyExists(RevisionConflict):
    """create() was called for a key that is there."""


class KeyMissing(StorageError, KeyError):
    """update() was called for a key that is not there."""

    __str__ = StrongroomError.__str__  # KeyError would show the repr of the sentence


class RecordInvalid(StorageError):
    """A record, stored or to be, does not fit its model. Names `namespace`, `key` and `field`."""

    def __init__(
        self,
        what: str,
        *,
        remedy: str | None = None,
        namespace: str,
        key: str,
        field: str | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.namespace = namespace
        self.key = key
        self.field = field


class WatchExpired(StorageError):
    """The cursor is older than the deletions that the store remembers: list again, then watch."""


class NotSupported(StorageError):
    """The provider declares that it lacks the feature."""


# --- fabric -----------------------------------------------------------------------------------


class FabricError(StrongroomError):
    """The base of all errors of messaging."""

    exit_code = 40


class NoFabric(FabricError):
    """No fabric is current here: wrap the code in `async with Fabric():`."""


class InvalidAddress(FabricError, ValueError):
    """An address is `participant@location`."""


class ListenFailed(FabricError):
    """The listener's host and port cannot be had."""

    exit_code = 41


class AttachFailed(FabricError):
    """The sentinel cannot be reached, or did not answer in time."""

    exit_code = 42


class AttachRefused(AttachFailed):
    """The sentinel refused this node."""

    exit_code = 43


class ProtocolError(FabricError):
    """A peer sent what FAME does not allow."""


class MessageTooLarge(FabricError):
    """A message is larger than a link carries (256 KiB)."""


class CallError(FabricError):
    """A remote operation gave no result. `code` is the peer's code, `data` its detail."""

    exit_code = 50

    def __init__(
        self,
        what: str,
        *,
        remedy: str | None = None,
        code: int | str | None = None,
        data: Any = None,
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.code = code
        self.data = data


class NoRoute(CallError):
    """Nobody is bound to the address: nothing ran."""

    exit_code = 51


class CallTimeout(CallError, TimeoutError):
    """No answer came within the deadline: the operation may have run."""

    exit_code = 52


class CallInterrupted(CallError):
    """The agent or the link went in mid-call: the operation may have run."""

    exit_code = 53


class UnknownOperation(CallError):
    """The agent has no operation of that name."""

    exit_code = 54


class InvalidArguments(CallError):
    """The arguments do not fit the operation; `data` holds the detail of each."""

    exit_code = 55


class OperationFailed(CallError):
    """The operation raised; the message is that of its exception."""

    exit_code = 56


class StreamStalled(CallError):
    """The reader took nothing for so long that the stream was ended for the others' sake."""
