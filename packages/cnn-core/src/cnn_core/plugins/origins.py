"""Attribute errors to plugins, by recording which plugin each module belongs to."""

from __future__ import annotations

import sys
import traceback

from cnn_core.plugins.directory import directory
from cnn_core.plugins.discovery import Plugin

__all__ = ["claim", "plugin_at_fault"]

SHARED = ("cnn_core", "torch", "torchvision", "numpy", "matplotlib", *sys.stdlib_module_names)

_owners: dict[str, Plugin] = {}  # by the names of modules and of their packages


def claim(module: str, plugin: Plugin) -> None:
    """Record that a module, and the package that contains it, belong to a plugin."""
    # A spec may name code in these packages, but that code is not the plugin's.
    if module.partition(".")[0] not in SHARED:
        _owners[module] = plugin
        if package := module.rpartition(".")[0]:
            _owners[package] = plugin


def plugin_at_fault(error: BaseException) -> Plugin | None:
    """Return the third-party plugin nearest to where an error was raised, or None."""
    if not _owners:
        return None
    # Errors in this repository's own plugins are reported as bugs in cnnzoo.
    ours = {"cnn-core", *(name for known in directory().values() for name in known.values())}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        plugin = _owner(str(frame.f_globals.get("__name__", "")))
        if plugin is not None and plugin.distribution not in ours:
            return plugin
    return None


def _owner(module: str) -> Plugin | None:
    while module and module not in _owners:
        module = module.rpartition(".")[0]
    return _owners.get(module)
