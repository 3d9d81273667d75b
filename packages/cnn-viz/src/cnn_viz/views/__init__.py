"""One figure a file; each function returns a matplotlib Figure."""

__all__: list[str] = []
