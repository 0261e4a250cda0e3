"""Who runs it: nodes, sentinels and clients."""
