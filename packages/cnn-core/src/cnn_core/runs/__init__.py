"""A run and its recipe, as files. Imports specs and what is below them; no torch."""
