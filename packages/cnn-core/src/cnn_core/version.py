"""The version of cnn-core, in a module that costs nothing to import."""

__all__ = ["__version__"]

__version__ = "0.1.0"
