"""See what a CNN learned: figures of a run, and the report that puts them on one page."""

__version__ = "0.1.0"

__all__: list[str] = []
