"""What stands for a language model, so that the example needs no service and no key."""


async def answer(said: list[str]) -> str:
    """The next sentence of a conversation, of which the user has said every other one."""
    if len(said) == 1:
        return f"You said: {said[-1]}"
    return f"You said: {said[-1]} Before that: {said[-3]}"
