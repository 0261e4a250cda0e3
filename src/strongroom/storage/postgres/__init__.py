"""The profile `postgres`: a space in a PostgreSQL database, which several machines share."""
