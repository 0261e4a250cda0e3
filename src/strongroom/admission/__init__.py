"""Who may join a fabric."""
