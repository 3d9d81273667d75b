"""The version of cnn-viz."""

__all__ = ["__version__"]

__version__ = "0.1.0"
