"""What to do about a file that cannot be used, so that every refusal leads out of it."""

from __future__ import annotations

from pathlib import Path

from strongroom.disk.directory import LOG_SUFFIX
from strongroom.keys.keystore import NAMESPACE as KEYSTORE

PLAIN_SUFFIX = ".db"
ENCRYPTED_SUFFIX = "_encrypted_value.db"


def namespace_in(path: Path) -> str:
    """The namespace whose file, or log, `path` is."""
    name = path.name.removesuffix(LOG_SUFFIX)
    return name.removesuffix(ENCRYPTED_SUFFIX).removesuffix(PLAIN_SUFFIX)


def put_back(path: Path) -> str:
    """The remedy for a store that is damaged, missing or older than it was."""
    name = namespace_in(path)
    if name == KEYSTORE:
        return (
            "put the newest copy back; then, if it is older: strongroom store accept __keystore. "
            "Without one nobody can read the stores: begin with another directory in "
            "FAME_STORAGE_DB_DIRECTORY"
        )
    return (
        "keep a copy of the file and of its log, then put the newest copies of both back (and if "
        "the whole directory is from a backup, delete __commits). If they are older than what was "
        "lost: "
        f"strongroom store accept {name}. If there are none: strongroom store forget {name}"
    )


def set_aside(path: Path) -> str:
    """The remedy for a file that does not belong where it is."""
    return (
        "put back the file that was there. If there is none: "
        f"strongroom store forget {namespace_in(path)}, which sets this one aside"
    )
