"""What an operator asks of a running node, or of a data directory that no node uses."""
