"""For authors of storage providers: the conformance suite, faults and the leak scan."""
