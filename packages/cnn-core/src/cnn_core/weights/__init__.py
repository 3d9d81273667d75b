"""Read and write weights files, ours and other libraries'. Imports data/ and registry/."""

from cnn_core.weights.keymap import KeyMap

__all__ = ["KeyMap"]
