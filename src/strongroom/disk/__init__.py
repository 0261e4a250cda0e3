"""Files on one disk: how each is created, checked, opened and replaced."""
