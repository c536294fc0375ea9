"""The version of this package, as checkpoints and plans carry it."""

__version__ = "0.1.0"
