"""Other runtimes' names for what Strongroom has."""
