"""The version of cnn-core, in a module without imports."""

__all__ = ["__version__"]

__version__ = "0.1.0"
