"""The version of cnn-core, which importing it costs nothing to ask for."""

__all__ = ["__version__"]

__version__ = "0.1.0"
