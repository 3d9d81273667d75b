"""Find, check, load and isolate plugins. Imports builtin/ and the layers below."""

from cnn_core.plugins.isolation import isolated, required
from cnn_core.plugins.loader import HEAVY, Plugins, plugins
from cnn_core.plugins.observers import Observers

__all__ = ["HEAVY", "Observers", "Plugins", "isolated", "plugins", "required"]
