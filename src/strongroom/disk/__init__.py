"""The encrypted file: its header, its opening and guards, its replacement."""
