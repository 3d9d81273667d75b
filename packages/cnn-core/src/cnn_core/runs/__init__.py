"""Run directories and recipes. Imports only `specs` and lower layers, and not torch."""
