"""The commands as functions: a dataclass in, a dataclass out, no terminal."""
