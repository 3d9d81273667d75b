"""Whose code an error came through: what is imported for plugins is remembered."""

from __future__ import annotations

import sys
import traceback

from cnn_core.plugins.directory import directory
from cnn_core.plugins.discovery import Plugin

__all__ = ["claim", "plugin_at_fault"]

EVERYONES = ("cnn_core", "torch", "torchvision", "numpy", "matplotlib", *sys.stdlib_module_names)

_code: dict[str, Plugin] = {}  # modules, and the packages that they are in


def claim(module: str, plugin: Plugin) -> None:
    """Remember that a module, and what is beside it in its package, is a plugin's."""
    if module.partition(".")[0] not in EVERYONES:
        _code[module] = plugin
        if package := module.rpartition(".")[0]:
            _code[package] = plugin


def plugin_at_fault(error: BaseException) -> Plugin | None:
    """Return the third-party plugin whose code an error came through, the innermost; or None."""
    if not _code:
        return None
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
