"""Reads that share a statement all get its outcome."""

import asyncio

from support.postgres import new_space, opened, server


async def test_every_reader_hears_of_a_mistake_that_is_no_storage_error() -> None:
    async with opened(server().url, space=new_space()) as provider:
        store = await provider.open("notes")
        bad = "\ud800"  # cannot be encoded; users' keys are checked before they come here
        outcomes = await asyncio.gather(
            *(store.read([key]) for key in ("alone", "a", bad, "b")), return_exceptions=True
        )

    assert outcomes[0] == [None]
    assert all(isinstance(outcome, UnicodeEncodeError) for outcome in outcomes[1:])
