"""A private copy of a data directory, for reading one that cannot be written.

SQLite recovers a log, and a node notes its start, by writing beside the database.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from strongroom.disk.directory import DirectoryLock
from strongroom.disk.inspect import check_files, our_files
from strongroom.errors import StoreUnavailable

log = logging.getLogger(__name__)


def is_read_only(directory: Path) -> bool:
    """Whether there is a directory that this user, root too, cannot write."""
    return directory.is_dir() and not os.access(directory, os.W_OK)


class PrivateCopy:
    """A copy that only this user can read, until `remove`."""

    def __init__(self, original: Path) -> None:
        """Copy the files of a directory that no node uses. Blocks.

        Raises:
            DirectoryInUse: A node uses it.
            DirectoryError: Something is there that is no file of a node.
            StoreUnavailable: There is no space for the copy, or a file cannot be read.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="strongroom-"))  # mode 0700
        try:
            self._copy(original)
        except OSError as error:
            self.remove()
            raise StoreUnavailable(
                f"{original} cannot be copied to {self.directory}: {error.strerror}.",
                remedy="set TMPDIR to a directory with enough space",
                path=original,
            ) from error
        except BaseException:
            self.remove()
            raise
        log.warning(
            "%s cannot be written: this reads a copy of it, and the audit log does not note it",
            original,
        )

    def _copy(self, original: Path) -> None:
        lock = DirectoryLock(original)
        try:
            check_files(original)
            for path in our_files(original):
                shutil.copyfile(path, self.directory / path.name)
                (self.directory / path.name).chmod(0o600)
        finally:
            lock.release()

    def remove(self) -> None:
        """Delete the copy."""
        shutil.rmtree(self.directory, ignore_errors=True)
