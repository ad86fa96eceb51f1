"""The arithmetic of a table that is not built yet: what its rows hold, where they fit, how fast."""
