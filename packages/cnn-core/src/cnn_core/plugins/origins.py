"""Find the plugin that raised an error: remember which plugin each module belongs to."""

from __future__ import annotations

import sys
import traceback

from cnn_core.plugins.directory import directory
from cnn_core.plugins.discovery import Plugin

__all__ = ["claim", "plugin_at_fault"]

SHARED = ("cnn_core", "torch", "torchvision", "numpy", "matplotlib", *sys.stdlib_module_names)

_code: dict[str, Plugin] = {}  # by module, and by the package that contains it


def claim(module: str, plugin: Plugin) -> None:
    """Remember that a module, and its neighbours in its package, belong to a plugin."""
    # A spec may name code of these packages, which does not make it the plugin's.
    if module.partition(".")[0] not in SHARED:
        _code[module] = plugin
        if package := module.rpartition(".")[0]:
            _code[package] = plugin


def plugin_at_fault(error: BaseException) -> Plugin | None:
    """Return the third-party plugin whose code is innermost in an error's traceback, or None."""
    if not _code:
        return None
    # The plugins of this repository are not blamed: their errors are reported as our defects.
    ours = {"cnn-core", *(name for known in directory().values() for name in known.values())}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        plugin = _owner(str(frame.f_globals.get("__name__", "")))
        if plugin is not None and plugin.distribution not in ours:
            return plugin
    return None


def _owner(module: str) -> Plugin | None:
    while module and module not in _code:
        module = module.rpartition(".")[0]
    return _code.get(module)
