"""The version of cnn-viz."""

__version__ = "0.1.0"
