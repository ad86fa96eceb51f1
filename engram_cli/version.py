"""The version of the tool, which artifacts carry."""

__version__ = "0.1.0"
