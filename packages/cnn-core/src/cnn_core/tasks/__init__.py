"""Tasks: what a network is trained to do, and how it is measured."""

__all__: list[str] = []
