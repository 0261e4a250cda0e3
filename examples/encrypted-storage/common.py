"""What the agent and its client agree on."""

AGENT_ADDR = "storage@fame.fabric"
