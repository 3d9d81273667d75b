"""Core's own plugin: its datasets, metrics and commands. Imports only specs and hookspecs."""
