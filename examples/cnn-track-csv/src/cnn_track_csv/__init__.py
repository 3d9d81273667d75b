"""Track every epoch of every run in one CSV file."""

__version__ = "0.1.0"

__all__: list[str] = []
