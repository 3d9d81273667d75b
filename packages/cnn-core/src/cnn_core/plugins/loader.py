"""Load each plugin in isolation, and call the hooks of the loaded ones.

pluggy dispatches the calls. It does not load plugins, because `load_setuptools_entrypoints` stops
at the first plugin that raises and silently drops a second plugin of the same name. A broken
plugin causes one warning on stderr; the others still work. Nothing here imports torch.
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
from cnn_core.errors import PluginError
from cnn_core.plugins.discovery import Plugin, discover, pin_violation, warn_or_raise
from cnn_core.plugins.isolation import isolated
from cnn_core.plugins.origins import claim
from cnn_core.text import did_you_mean, printable

__all__ = ["HEAVY", "Plugins", "plugins"]

HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "sklearn", "umap")
SLOW_IMPORT = 1.0  # seconds; importing a module of specs takes about a hundredth of this

_loading: list[bool] = []


@functools.cache
def plugins() -> Plugins:
    """Return this process's plugins; the first call loads them.

    Raises:
        PluginError: a plugin calls this while plugins are being loaded.
    """
    if _loading:  # guard against infinite recursion
        raise PluginError("plugins() was called while plugins are being loaded")
    _loading.append(True)
    try:
        return Plugins(discover())
    finally:
        _loading.clear()


class Plugins:
    """All plugins, including core's own; loads them and calls their hooks."""

    def __init__(self, found: Iterable[Plugin]) -> None:
        self.manager: pluggy.PluginManager = pluggy.PluginManager("cnnzoo")
        self.manager.add_hookspecs(hookspecs)
        self.all: list[Plugin] = [core_plugin(), *found]
        self.conflicts: list[str] = self._name_conflicts()
        for line in self.conflicts:
            warn_or_raise(line)
        for plugin in self.all:
            if not plugin.blocked:
                started = time.perf_counter()
                self._load(plugin)
                plugin.seconds = time.perf_counter() - started

    @property
    def loaded(self) -> list[Plugin]:
        """The plugins whose hooks can be called."""
        return [p for p in self.all if self._registered(p)]

    def _registered(self, plugin: Plugin) -> bool:
        module = plugin.module
        return module is not None and self.manager.get_plugin(plugin.origin) is module

    def _name_conflicts(self) -> list[str]:
        """Return a message per duplicated plugin name; the plugins are loaded anyway."""
        by_name: dict[str, list[str]] = {}
        for plugin in self.all:
            if not plugin.blocked:
                by_name.setdefault(plugin.name, []).append(plugin.origin)
        return [
            printable(f"plugin name '{name}' is claimed by {' and '.join(origins)}")
            for name, origins in sorted(by_name.items())
            if len(origins) > 1
        ]

    def _load(self, plugin: Plugin) -> None:
        """Check the requirements of one plugin, import it and register its hooks."""
        before, started = set(sys.modules), time.perf_counter()
        with isolated(plugin, "import", failed=self._failing(plugin, "import"), silent=True):
            # Inside the block, because a distribution's broken metadata can raise.
            if cause := pin_violation(plugin):
                plugin.add_fault("requirements", cause, fatal=True)
                return
            # Before the import, so that errors in the module are attributed to this plugin.
            claim(plugin.target, plugin)
            plugin.module = importlib.import_module(plugin.target)
        if plugin.module is None:
            return
        self._report_cost(plugin, before, time.perf_counter() - started)
        # Isolated, because module attributes may be dynamic (`__getattr__`).
        with isolated(plugin, "hooks", failed=self._failing(plugin, "hooks"), silent=True):
            self._register(plugin)

    def _failing(self, plugin: Plugin, stage: str) -> Callable[[BaseException], None]:
        """Return a handler that removes a plugin's hooks and records the error of a stage."""

        def fail(error: BaseException) -> None:
            self._unregister(plugin)
            plugin.add_fault(stage, error, fatal=True)

        return fail

    def _report_cost(self, plugin: Plugin, before: set[str], seconds: float) -> None:
        """Report an import that slows down startup."""
        heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        if heavy:
            plugin.add_fault("import", f"imports {', '.join(heavy)}, which slows down startup")
        elif seconds > SLOW_IMPORT:
            plugin.add_fault("import", f"takes {seconds:.1f} s, which slows down startup")

    def _register(self, plugin: Plugin) -> None:
        """Register the module with pluggy, which checks its hooks against the hookspecs."""
        stage = "hooks"
        # Checked first, because pluggy would raise a ValueError that lists all plugins.
        if registered_as := self.manager.get_name(plugin.module):
            cause = f"{plugin.target} is already registered as {registered_as}"
            plugin.add_fault(stage, cause, fatal=True)
            return
        try:
            # pluggy warns about deprecated hooks; by default Python shows each warning once.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.manager.register(plugin.module, name=plugin.origin)
                # register() accepts unknown hooks; check_pending() raises for them.
                self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self._unregister(plugin)
            plugin.add_fault(stage, _explain_hook(error, plugin), fatal=True)
            return
        # pluggy silently ignores a function without the decorator.
        if unmarked := unmarked_hooks(plugin.module):
            cause = f"hooks without @cnn_core.hookimpl: {', '.join(unmarked)}"
            self._unregister(plugin)
            plugin.add_fault(stage, cause, fatal=True)
        elif not self.manager.get_hookcallers(plugin.module):
            plugin.add_fault(stage, f"{plugin.target} implements no hook")
        for warning in caught:
            plugin.add_fault(stage, str(warning.message))
        # The plugin works, but runs record its distribution and version.
        if plugin.entry is not None and "unknown" in (plugin.distribution, plugin.version):
            plugin.add_fault("METADATA", "Name or Version is missing: reinstall the distribution")

    def _unregister(self, plugin: Plugin) -> None:
        """Remove a plugin's hooks, even if pluggy registered it only partially."""
        if self._registered(plugin):
            self.manager.unregister(name=plugin.origin)

    def hooks(self, plugin: Plugin) -> list[str]:
        """Return the names of the hooks that a loaded plugin implements."""
        callers = self.manager.get_hookcallers(plugin.module) if plugin.module else None
        return sorted(caller.name for caller in callers or ())

    def callers(self, hook: str) -> list[tuple[Plugin, Callable[..., list[Any]]]]:
        """Return each plugin that implements `hook`, with a function that calls it alone."""
        return [
            (plugin, self.manager.subset_hook_caller(hook, remove_plugins=self._all_but(plugin)))
            for plugin in self.loaded
            if hook in self.hooks(plugin)
        ]

    def _all_but(self, plugin: Plugin) -> list[ModuleType | None]:
        return [other.module for other in self.loaded if other is not plugin]

    def call(self, hook: str, **arguments: Any) -> Iterator[tuple[Plugin, Any]]:
        """Call a hook of one plugin after another; yield each plugin with its result.

        A plugin that raises is reported and skipped.
        """
        for plugin, caller in self.callers(hook):
            results = []
            with isolated(plugin, f"hook {hook}", silent=True):
                results.append(_result(caller, arguments))
            # Empty if the hook failed. Yield outside the block, so that the caller's exceptions
            # are not blamed on the plugin.
            for result in results:
                yield plugin, result


def _result(caller: Callable[..., list[Any]], arguments: dict[str, Any]) -> Any:
    """Call one plugin's hook; return its result, with iterables converted to lists.

    Raises:
        TypeError: with a clearer message than Python's if the hook puts specs into a set.
    """
    try:
        found = caller(**arguments)
        result = found[0] if found else None  # pluggy drops None
        if isinstance(result, Iterable) and not isinstance(result, str | Mapping):
            return list(result)  # here, because a generator raises while it is iterated
        return result
    except TypeError as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if frames[-1].f_code.co_name != "__hash__":
            raise
        raise TypeError("specs are not hashable: return a list, not a set or dict keys") from error


def core_plugin() -> Plugin:
    """Return the plugin that provides core's own datasets, metrics and commands."""
    from cnn_core.builtin import plugin as builtin
    from cnn_core.version import __version__

    name = builtin.__name__
    return Plugin("core", "cnn-core", __version__, name, module=builtin)


def unmarked_hooks(module: ModuleType | None) -> list[str]:
    """Return the names of a module's functions that look like hooks but lack the decorator."""
    return [
        name
        for name, value in vars(module).items()
        if name.startswith("cnnzoo_")
        and inspect.isfunction(value)
        and not hasattr(value, "cnnzoo_impl")
    ]


def _explain_hook(error: pluggy.PluginValidationError, plugin: Plugin) -> str:
    """Turn pluggy's message into one line; for an unknown hook, suggest the nearest name."""
    known = [name for name in vars(hookspecs) if name.startswith("cnnzoo_")]
    unknown = re.match(r"unknown hook '(\w+)'", str(error))
    if unknown is None:
        hook = re.search(r"for hook '(\w+)'", str(error))
        return f"{hook.group(1) if hook else plugin.target}: {str(error).splitlines()[-1]}"
    name = unknown.group(1)
    return f"{plugin.target}: unknown hook '{name}'{did_you_mean(name, known)}"
