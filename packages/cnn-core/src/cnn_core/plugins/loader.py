"""Load each plugin in isolation, and call the hooks of those that work.

Dispatch is pluggy's; loading is ours, because `load_setuptools_entrypoints` stops at the
first plugin that raises and silently drops a second plugin of the same name. A broken
plugin costs one line on stderr; everything else goes on. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pluggy

from cnn_core import hookspecs
from cnn_core.errors import (
    PluginError,
)
from cnn_core.plugins.discovery import (
    Plugin,
    StrictError,
    complain,
    discover,
    pin_violation,
)
from cnn_core.plugins.isolation import ENDINGS, kept_apart
from cnn_core.plugins.origins import claim
from cnn_core.text import did_you_mean, printable

__all__ = ["HEAVY", "Plugins", "plugins"]

HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "sklearn", "umap")
SLOW = 1.0  # seconds that an import may take; that of a light module takes a hundredth

_loading: list[bool] = []


@functools.cache
def plugins() -> Plugins:
    """Return this process's plugins, loading them at the first call.

    Raises:
        PluginError: a plugin calls it while it is itself being loaded.
    """
    if _loading:
        raise PluginError("asks for plugins while plugins are being loaded")
    _loading.append(True)
    try:
        return Plugins(discover())
    finally:
        _loading.clear()


class Plugins:
    """The loaded plugins, core's own among them, and the calls to their hooks."""

    def __init__(self, found: Iterable[Plugin]) -> None:
        self.manager: pluggy.PluginManager = pluggy.PluginManager("cnnzoo")
        self.manager.add_hookspecs(hookspecs)
        self.all: list[Plugin] = [core_plugin(), *found]
        self.conflicts: list[str] = self._twins()
        for line in self.conflicts:
            complain(line)
        for plugin in self.all:
            if not plugin.blocked:
                self._load(plugin)

    @property
    def loaded(self) -> list[Plugin]:
        """The plugins whose hooks can be called."""
        return [p for p in self.all if self._registered(p)]

    def _registered(self, plugin: Plugin) -> bool:
        module = plugin.module
        return module is not None and self.manager.get_plugin(plugin.origin) is module

    def _twins(self) -> list[str]:
        """One line for each name that several plugins have: all are loaded, none owns it."""
        by_name: dict[str, list[str]] = {}
        for plugin in self.all:
            if not plugin.blocked:
                by_name.setdefault(plugin.name, []).append(plugin.origin)
        return [
            printable(f"plugin name '{name}' is claimed twice: {' and '.join(origins)}")
            for name, origins in sorted(by_name.items())
            if len(origins) > 1
        ]

    def _load(self, plugin: Plugin) -> None:
        """Gate, import and register one plugin; any failure is its own."""
        started = time.perf_counter()
        try:
            if cause := pin_violation(plugin):
                plugin.add_fault("requirements", cause, fatal=True)
                return
            self._import(plugin)
            self._register(plugin)
            if plugin.entry is not None and "unknown" in (plugin.distribution, plugin.version):
                plugin.add_fault("METADATA", "has no Name or no Version: install it again")
        except (StrictError, *ENDINGS):
            raise
        except BaseException as error:
            self._unregister(plugin)
            plugin.add_fault("import", error, fatal=True)
        finally:
            plugin.seconds = time.perf_counter() - started

    def _import(self, plugin: Plugin) -> None:
        """Import the plugin's light module, kept apart from all others."""
        before, started = set(sys.modules), time.perf_counter()
        claim(plugin.target, plugin)
        with kept_apart(plugin, "import"):
            plugin.module = importlib.import_module(plugin.target)
        heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        if heavy:
            plugin.add_fault("import", f"imports {', '.join(heavy)}: every start is slower")
        elif (seconds := time.perf_counter() - started) > SLOW:
            plugin.add_fault("import", f"takes {seconds:.1f} s: every start is slower")

    def _register(self, plugin: Plugin) -> None:
        """Hand the module to pluggy, which checks its hooks against the hookspecs."""
        where = "hooks"
        if namesake := self.manager.get_name(plugin.module):
            cause = f"{plugin.target} is already loaded as {namesake}"
            plugin.add_fault(where, cause, fatal=True)
            return
        try:
            with warnings.catch_warnings(record=True) as leaving:
                warnings.simplefilter("always")
                self.manager.register(plugin.module, name=plugin.origin)
                self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self._unregister(plugin)
            plugin.add_fault(where, _explain_hook(error, plugin), fatal=True)
            return
        if bare := unmarked_hooks(plugin.module):
            cause = f"{', '.join(bare)} lacks the decorator @cnn_core.hookimpl"
            self._unregister(plugin)
            plugin.add_fault(where, cause, fatal=True)
        elif not self.manager.get_hookcallers(plugin.module):
            plugin.add_fault(where, f"{plugin.target} implements no hook")
        for warning in leaving:  # hooks that are on their way out
            plugin.add_fault(where, str(warning.message))

    def _unregister(self, plugin: Plugin) -> None:
        """Take a plugin out again, also when pluggy left it half registered."""
        if self._registered(plugin):
            self.manager.unregister(name=plugin.origin)

    def hooks(self, plugin: Plugin) -> list[str]:
        """Return the names of the hooks that a loaded plugin implements."""
        callers = self.manager.get_hookcallers(plugin.module) if plugin.module else None
        return sorted(caller.name for caller in callers or ())

    def callers(self, hook: str) -> list[tuple[Plugin, Callable[..., list[Any]]]]:
        """Return, for each plugin that implements `hook`, pluggy's caller of it alone."""
        return [
            (plugin, self.manager.subset_hook_caller(hook, remove_plugins=self._all_but(plugin)))
            for plugin in self.loaded
            if hook in self.hooks(plugin)
        ]

    def _all_but(self, plugin: Plugin) -> list[ModuleType | None]:
        return [other.module for other in self.loaded if other is not plugin]

    def call(self, hook: str, **arguments: Any) -> Iterator[tuple[Plugin, Any]]:
        """Call one hook plugin by plugin; yield each plugin with what it returned.

        Iterables are materialised here, where a generator that raises late is caught.
        A plugin that raises is reported, and skipped.
        """
        for plugin, caller in self.callers(hook):
            try:
                with kept_apart(plugin, f"hook {hook}"):
                    result = _materialised(caller(**arguments))
            except (StrictError, *ENDINGS):
                raise
            except BaseException as error:
                plugin.add_fault(f"hook {hook}", _explain_set(error))
            else:
                yield plugin, result


def _explain_set(error: BaseException) -> BaseException:
    """Turn Python's complaint about a set of specs, which have no hash, into one that helps."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, TypeError) or frames[-1].f_code.co_name != "__hash__":
        return error
    helpful = TypeError("specs cannot be in a set, or keys of a dict: return a list")
    helpful.__cause__ = error
    return helpful


def _materialised(results: list[Any]) -> Any:
    """Return the one result of a plugin, as a list if it is to be iterated over."""
    result = results[0] if results else None  # pluggy leaves out None
    if isinstance(result, Iterable) and not isinstance(result, str | Mapping):
        return list(result)
    return result


def core_plugin() -> Plugin:
    """Return the plugin that holds core's own datasets, metrics and commands."""
    from cnn_core.builtin import plugin as builtin
    from cnn_core.version import __version__

    name = builtin.__name__
    return Plugin("core", "cnn-core", __version__, name, module=builtin)


def unmarked_hooks(module: ModuleType | None) -> list[str]:
    """Return functions of a plugin that are named like hooks but are not marked."""
    return [
        name
        for name, value in vars(module).items()
        if name.startswith("cnnzoo_")
        and inspect.isfunction(value)
        and not hasattr(value, "cnnzoo_impl")
    ]


def _explain_hook(error: pluggy.PluginValidationError, plugin: Plugin) -> str:
    """Turn pluggy's message about a hook into one that names the nearest hook."""
    known = [name for name in vars(hookspecs) if name.startswith("cnnzoo_")]
    unknown = re.match(r"unknown hook '(\w+)'", str(error))
    if unknown is None:
        hook = re.search(r"for hook '(\w+)'", str(error))
        return f"{hook.group(1) if hook else plugin.target}: {str(error).splitlines()[-1]}"
    name = unknown.group(1)
    return f"no hook is called '{name}' in {plugin.target}{did_you_mean(name, known)}"
