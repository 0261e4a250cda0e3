"""Every error that Strongroom raises, in one tree.

    StrongroomError: NotStarted
        SettingsError: MasterKeyMissing, MasterKeyInvalid, UnknownProfile
        StorageError: EngineUnsuitable, EngineUnreachable, EngineRefused, IdentityInUse,
                IdentityLost, OwnerUnreachable, AuditBroken, ImportInvalid, Unhealthy,
                InvalidNamespace, InvalidKey, ValueTooLarge, KeyMissing, RecordInvalid,
                WatchExpired, NotSupported
            DirectoryError: DirectoryInUse, FilesystemUnsafe, ProfileMismatch, WrongMasterKey,
                KeystoreMissing, KeystoreOlder
            StoreError: StoreMissing, StoreDamaged, StoreNotEncrypted, ForeignStore, StoreSwapped,
                StoreRolledBack, FormatUnsupported, StoreUnavailable, StoreClosed, StoreForked
            RevisionConflict: KeyExists
        FabricError: NoFabric, InvalidAddress, ListenFailed, ProtocolError, MessageTooLarge
            AttachFailed: AttachRefused
            CallError: NoRoute, Busy, CallTimeout, CallInterrupted, UnknownOperation,
                InvalidArguments, OperationFailed, StreamStalled
                AgentError: InvalidTask, DuplicateTask, TaskNotFound, TaskNotCancelable, TaskFailed,
                    PushNotificationNotSupported, UnsupportedOperation, Unauthorized,
                    RateLimitExceeded, NoDataFound, Conflict, InvalidData

Each says what happened (`what`) and what to do about it (`remedy`); its facts are attributes.
A node or a command that ends with an error exits with its `exit_code`; docs/errors.md lists them.
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
    error = kind.__new__(kind)  # the constructors of some classes make `what` out of fields
    error.args = (fields["what"],)
    vars(error).update(fields)
    return error


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class NotStarted(StrongroomError):
    """A provider or a node was used before it was started."""


# --- settings ---------------------------------------------------------------------------------


class SettingsError(StrongroomError):
    """A FAME_* variable is missing or has a value that is not allowed."""

    exit_code = 10


class MasterKeyMissing(SettingsError):
    """The storage profile encrypts, and no master key is set."""

    exit_code = 11


class MasterKeyInvalid(SettingsError):
    """The master key is too short or malformed, or its file or command failed."""

    exit_code = 12


class UnknownProfile(SettingsError):
    """FAME_STORAGE_PROFILE names no provider, or one that cannot be loaded."""

    exit_code = 13


# --- storage ----------------------------------------------------------------------------------


class StorageError(StrongroomError):
    """The base of all storage errors."""

    exit_code = 20


class DirectoryError(StorageError):
    """The data directory cannot be used. `path` is the directory or the file in it."""

    def __init__(self, what: str, *, remedy: str | None = None, path: Path | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.path = path


class DirectoryInUse(DirectoryError):
    """Another process is using the data directory."""

    exit_code = 21


class FilesystemUnsafe(DirectoryError):
    """The directory's filesystem cannot keep what a store promises."""

    exit_code = 22


class ProfileMismatch(DirectoryError):
    """The directory holds plain files and the profile encrypts, or the reverse."""

    exit_code = 23


class WrongMasterKey(DirectoryError):
    """The keystore was made with another master key."""

    exit_code = 24


class KeystoreMissing(DirectoryError):
    """The directory holds encrypted stores, but no keystore to open them with."""

    exit_code = 25


class KeystoreOlder(DirectoryError):
    """The keystore was replaced by an older copy."""

    exit_code = 26


class StoreError(StorageError):
    """One store cannot be used. `path` is its file and `namespace` its name, if known."""

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
    """The keystore has the store's key, but the store's file does not exist."""

    exit_code = 27


class StoreDamaged(StoreError):
    """The file holds bytes that were never valid."""

    exit_code = 28


class StoreNotEncrypted(StoreError):
    """An encrypted file was replaced by a plain SQLite file."""

    exit_code = 29


class ForeignStore(StoreError):
    """The file belongs to another node, or to a newer keystore than this one."""

    exit_code = 30


class StoreSwapped(StoreError):
    """The file belongs to another namespace of this node."""

    exit_code = 31


class StoreRolledBack(StoreError):
    """The file was replaced by an older copy."""

    exit_code = 32


class FormatUnsupported(StoreError):
    """This version does not know the file's format."""

    exit_code = 33


class StoreUnavailable(StoreError):
    """The disk is full or read-only, an I/O error happened, or the file was removed."""

    exit_code = 34


class StoreClosed(StoreError):
    """The store was used after it was closed."""


class StoreForked(StoreError):
    """The store was used in a child process after a fork."""


class EngineUnsuitable(StorageError):
    """The installed SQLite cannot encrypt as the files need, or the server is not fit for use."""

    exit_code = 35


class EngineUnreachable(StorageError):
    """The server that keeps the data did not answer within FAME_STORAGE_TIMEOUT at the start."""

    exit_code = 60


class EngineRefused(StorageError):
    """The server refuses the user, the password, or what the program asks for."""

    exit_code = 61


class IdentityInUse(StorageError):
    """Another process is running as this node."""

    exit_code = 62


class IdentityLost(StorageError):
    """Another process has claimed this node's id, after its lease had ended."""

    exit_code = 63


class OwnerUnreachable(StorageError):
    """The command needs a running node, and none answers at the admin socket."""

    exit_code = 36


class AuditBroken(StorageError):
    """A line of the audit log is missing or was changed."""

    exit_code = 37


class ImportInvalid(StorageError):
    """A line of an import cannot be read; nothing was stored."""

    exit_code = 38


class Unhealthy(StorageError):
    """`strongroom doctor` found a problem."""

    exit_code = 39


class InvalidNamespace(StorageError, ValueError):
    """The namespace does not exist, or its name is not allowed."""


class InvalidKey(StorageError, ValueError):
    """A key is a string of 1 to 1024 UTF-8 bytes without NUL and lone surrogates."""


class ValueTooLarge(StorageError, ValueError):
    """The encoded record is larger than the store accepts."""


class RevisionConflict(StorageError):
    """The record is at revision `found` (0: it does not exist), not at `expected`."""

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
    """create() was called for a key that exists."""


class KeyMissing(StorageError, KeyError):
    """The operation needs a record with this key, and there is none."""


class RecordInvalid(StorageError):
    """A record does not fit its model. Has the `namespace`, `key` and `field`."""

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
    """The store no longer remembers what changed since the cursor."""


class NotSupported(StorageError):
    """The provider does not have the feature or the command."""


# --- fabric -----------------------------------------------------------------------------------


class FabricError(StrongroomError):
    """The base of all messaging errors."""

    exit_code = 40


class NoFabric(FabricError):
    """This code runs outside `async with Fabric():`."""


class InvalidAddress(FabricError, ValueError):
    """The address is not of the form `participant@location`."""


class ListenFailed(FabricError):
    """The listener's host and port are not available."""

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
    """Nothing is bound to the address; the operation did not run."""

    exit_code = 51


class Busy(CallError):
    """Too many calls are running on the agent's node; the operation did not run."""

    exit_code = 57


class CallTimeout(CallError, TimeoutError):
    """No answer came within the deadline; the operation may have run."""

    exit_code = 52


class CallInterrupted(CallError):
    """The agent or the connection was lost during the call; the operation may have run."""

    exit_code = 53


class UnknownOperation(CallError):
    """The agent has no operation of that name."""

    exit_code = 54


class InvalidArguments(CallError):
    """The arguments do not fit the operation; `data` has the detail of each."""

    exit_code = 55


class OperationFailed(CallError):
    """The operation raised an exception, whose message this is."""

    exit_code = 56


class AgentError(CallError):
    """The agent refused, and says why. Raised by an agent, it arrives as what it is."""


class InvalidTask(AgentError):
    """The task is malformed or incomplete."""


class DuplicateTask(AgentError):
    """A task with this id was started before."""


class TaskNotFound(AgentError):
    """The agent does not have this task, or no longer."""


class TaskNotCancelable(AgentError):
    """The task, or any task of this agent, cannot be canceled."""


class TaskFailed(AgentError, ValueError):
    """The task failed, for the reason that this says."""


class PushNotificationNotSupported(AgentError):
    """The agent sends no notifications."""


class UnsupportedOperation(AgentError):
    """The agent does not do this."""


class Unauthorized(AgentError):
    """The caller may not do this."""


class RateLimitExceeded(AgentError):
    """The caller asks too often, or for too much at once; it may try again later."""


class NoDataFound(AgentError):
    """What was asked for does not exist."""


class Conflict(AgentError):
    """What was to be made exists."""


class InvalidData(AgentError):
    """What was sent makes no sense to the agent."""


class StreamStalled(CallError):
    """The stream was ended because its reader had stopped reading and was holding up others."""
