"""Who may read the data: the master key, the keystore, the audit log."""
