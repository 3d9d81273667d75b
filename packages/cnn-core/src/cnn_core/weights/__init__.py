"""Weights: our files, other libraries' files, key maps. Imports data/ and registry/."""

from cnn_core.weights.keymap import KeyMap

__all__ = ["KeyMap"]
