"""The views: one per file, each a function that returns a matplotlib Figure."""

__all__: list[str] = []
