"""Who may read it: the master key, the keystore, rotation."""
