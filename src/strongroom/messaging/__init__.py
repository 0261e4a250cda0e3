"""How a message travels: addresses, envelopes, links, routes and calls."""
