"""Commands on the node as a whole: is it running, and is its data safe?"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any

from strongroom.admin.command import (
    Administered,
    Command,
    OnProgress,
    with_progress,
)
from strongroom.admin.keys import provider_with_keystore
from strongroom.errors import OwnerUnreachable
from strongroom.storage.records import system_clock
from strongroom.storage.sqlite.doctor import Finding, examine_at_rest, examine_running
from strongroom.storage.sqlite.files import StoreFiles
from strongroom.threads import Threads

ENCRYPTS = {"sqlite": False, "encrypted-sqlite": True}
"""The profiles whose files can be examined at rest, and whether they are encrypted."""


@Command
async def status(node: Administered) -> AsyncGenerator[Any, None]:
    """Describe the running node: its id, path and bindings."""
    if node.node is None:
        raise OwnerUnreachable(
            f"No node runs on {node.settings.directory}, or it has no admin socket.",
            remedy="strongroom sentinel",
        )
    yield node.node.describe()


@Command
def doctor(node: Administered) -> AsyncGenerator[Any, None]:
    """Examine everything in the data directory, and change nothing."""
    return with_progress(functools.partial(_examine, node))


async def _examine(node: Administered, report: OnProgress) -> list[Finding]:
    if node.node is None and node.settings.profile in ENCRYPTS:
        # Opening the provider would write to the directory: examine its files without one.
        encrypts = ENCRYPTS[node.settings.profile]
        with closing(Threads(1)) as threads:
            files = StoreFiles(node.settings, system_clock, threads, encrypts=encrypts)
            return await threads.run(examine_at_rest, files, report)
    return await examine_running(await provider_with_keystore(node), report)
