"""What a user writes: agents, their operations and state, and calls to remote ones."""
