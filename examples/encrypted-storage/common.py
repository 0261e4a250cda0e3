"""The address that the agent and its client share."""

AGENT_ADDR = "storage@fame.fabric"
