"""How a thread waits for what runs on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from strongroom.errors import FabricError

T = TypeVar("T")


def wait_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on `loop` and return its result, from any thread but the loop's own.

    Raises:
        FabricError: This is the loop's own thread, which would wait for itself.
    """
    try:
        is_own = asyncio.get_running_loop() is loop
    except RuntimeError:
        is_own = False
    if is_own:
        work.close()
        raise FabricError(
            "This would wait for the event loop that it runs on.",
            remedy="the method whose name begins with a, and await",
        )
    return asyncio.run_coroutine_threadsafe(work, loop).result()
