"""The version of mcls, for those that need no more of it."""

__version__ = "0.1.0"
