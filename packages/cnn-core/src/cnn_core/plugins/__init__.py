"""Plugins: found, checked, loaded, isolated, reported. Imports builtin/ and what is below it."""

from cnn_core.plugins.isolation import ENDINGS, answerable, unchanged
from cnn_core.plugins.loader import HEAVY, Plugins, plugins
from cnn_core.plugins.observers import Observers

__all__ = ["ENDINGS", "HEAVY", "Observers", "Plugins", "answerable", "plugins", "unchanged"]
