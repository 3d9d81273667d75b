"""Weights: files of ours, files of other libraries, key maps. Imports data/ and registry/."""

from cnn_core.weights.keymap import KeyMap

__all__ = ["KeyMap"]
