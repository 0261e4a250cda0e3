"""The engine of `sqlite` and `encrypted-sqlite`: one SQLite file for each namespace."""
