"""Deadlines: a block that takes too long ends as it would under `asyncio.timeout`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from strongroom.messaging.deadline import Deadline

Limit = Callable[[float], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    with Deadline(asyncio.get_running_loop(), seconds):
        yield


LIMITS = pytest.mark.parametrize("limit", [deadline, asyncio.timeout])
"""The same cases for both, since the one is to be what the other is."""


@LIMITS
async def test_a_block_that_takes_too_long_ends_with_an_error(limit: Limit) -> None:
    with pytest.raises(TimeoutError):
        async with limit(0.01):
            await asyncio.sleep(60)


@LIMITS
async def test_a_block_in_time_is_left_alone_later(limit: Limit) -> None:
    async with limit(0.01):
        pass
    await asyncio.sleep(0.03)


@LIMITS
async def test_an_error_of_the_block_comes_out_as_it_is(limit: Limit) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with limit(60):
            raise ValueError("mine")


@LIMITS
async def test_whoever_cancels_the_task_cancels_it(limit: Limit) -> None:
    async def work() -> None:
        async with limit(60):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@LIMITS
async def test_a_cancellation_at_the_deadline_stays_one(limit: Limit) -> None:
    async def work() -> None:
        async with limit(0):
            try:
                await asyncio.sleep(60)
            finally:
                task.cancel()

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


@LIMITS
async def test_of_two_deadlines_the_one_that_has_passed_ends_its_block(limit: Limit) -> None:
    async with limit(60):
        with pytest.raises(TimeoutError):
            async with limit(0.01):
                await asyncio.sleep(60)
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with limit(0.01):
            async with limit(60):
                await asyncio.sleep(60)
            pytest.fail("the inner block must not swallow the outer deadline")
