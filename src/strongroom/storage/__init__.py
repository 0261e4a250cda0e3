"""How data is kept; the names here are those that an author of a provider needs."""
