"""Load each plugin in isolation, and call the hooks of those that work.

Dispatch is pluggy's; loading is ours, because `load_setuptools_entrypoints` stops at the
first plugin that raises and silently drops a second plugin of the same name. A broken
plugin costs one line on stderr; everything else goes on. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
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
from cnn_core.blame import claim
from cnn_core.discovery import (
    Plugin,
    StrictError,
    complain,
    describe,
    discover,
    pin_violation,
    some,
)
from cnn_core.errors import (
    PluginError,
    Terminated,
    UsageError,
    ZooError,
    is_out_of_memory,
)
from cnn_core.guard import guarded
from cnn_core.text import did_you_mean, printable

__all__ = ["ENDINGS", "HEAVY", "Observers", "Plugins", "answerable", "plugins", "unchanged"]

HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "sklearn", "umap")
ENDINGS = (KeyboardInterrupt, Terminated)  # what ends a command in the midst of a plugin's code
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
        with _kept_apart(plugin, "import"):
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
                with _kept_apart(plugin, f"hook {hook}"):
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


@contextlib.contextmanager
def _kept_apart(plugin: Plugin, where: str) -> Iterator[None]:
    """Keep what a plugin prints out of our results, and what it changes from others; say so."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), unchanged(plugin, where):
            yield
    finally:
        if output.getvalue():
            plugin.add_fault(where, f"prints {output.getvalue()[:40]!r}")


@contextlib.contextmanager
def unchanged(plugin: Plugin, where: str) -> Iterator[None]:
    """Put back what a plugin's code changes of what is everyone's, and say so."""
    changed: list[str] = []
    try:
        with guarded() as changed:
            yield
    finally:
        if changed:
            plugin.add_fault(where, f"changes {some(changed)}, put back")


@contextlib.contextmanager
def answerable(plugin: Plugin, doing: str, what: str) -> Iterator[None]:
    """Run a plugin's code that must succeed, apart from others; a failure names the plugin.

    `doing` is for complaints about what it changes, `what` is what could not be done. Core's own
    failures, and errors that know what to say, are left as they are.

    Raises:
        PluginError: its code fails, or wants to end the process.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), unchanged(plugin, doing):
            yield
    except (ZooError, OSError, *ENDINGS):
        raise
    except BaseException as error:
        if is_out_of_memory(error) or plugin.distribution == "cnn-core":
            raise
        raise plugin.failure(f"{what}: {describe(error)}") from error


def _materialised(results: list[Any]) -> Any:
    """Return the one result of a plugin, as a list if it is to be iterated over."""
    result = results[0] if results else None  # pluggy leaves out None
    if isinstance(result, Iterable) and not isinstance(result, str | Mapping):
        return list(result)
    return result


class Observers:
    """The plugins that watch one training; one that raises is reported and heard no more.

    What they change of what is everyone's is put back after each call; of a stretch of steps
    after the first, and after the last. One that was found out is looked at after every step.
    """

    HOOKS = ("fit_start", "step_end", "epoch_end", "checkpoint", "fit_end")

    def __init__(self, plugins: Plugins | None, watching: Iterable[Any] = ()) -> None:
        self._callers = {
            hook: plugins.callers(f"cnnzoo_{hook}") if plugins is not None else []
            for hook in self.HOOKS
        }
        for observer in watching:
            for hook, caller in _hooks_of(observer).items():
                self._callers[hook].append((_guest(observer), caller))
        self._steps = contextlib.ExitStack()
        self._stepping = False
        self._changed: list[str] = []

    def hear(self, hook: str) -> bool:
        """Whether anyone listens: what nobody hears need not be made."""
        return bool(self._callers[hook])

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call "fit_start", "step_end", "epoch_end", "checkpoint" or "fit_end"."""
        name, later = f"hook cnnzoo_{hook}", hook == "step_end" and self._stepping
        if hook != "step_end":
            self._end_steps()
        elif not later:
            self._begin_steps()
        for plugin, caller in list(self._callers[hook]):
            trusted = later and all(fault.where != name for fault in plugin.faults)
            guard = contextlib.nullcontext() if trusted else unchanged(plugin, name)
            try:
                with contextlib.redirect_stdout(sys.stderr), guard:
                    caller(**arguments)
            except (StrictError, *ENDINGS):
                raise
            except BaseException as error:
                self._silence(plugin)
                where = f"{name}, now silenced for this run"
                plugin.add_fault(where, error, again=True)

    def _begin_steps(self) -> None:
        """Note what is everyone's before a stretch of steps: at each it would cost too much."""
        self._stepping = True
        self._changed = self._steps.enter_context(guarded())

    def _end_steps(self) -> None:
        """Put back what was changed in a stretch of steps; blame those who heard them."""
        self._steps.close()
        self._stepping = False
        changed, self._changed = self._changed, []
        if not changed:
            return
        heard = self._callers["step_end"]
        who = "it or another that hears it " if len(heard) > 1 else ""
        for plugin, _ in heard:
            plugin.add_fault("hook cnnzoo_step_end", f"{who}changes {some(changed)}, put back")

    def _silence(self, plugin: Plugin) -> None:
        for hook, callers in self._callers.items():
            self._callers[hook] = [(p, caller) for p, caller in callers if p is not plugin]


def _guest(observer: Any) -> Plugin:
    """Return what stands for an object that watches one training, in complaints about it."""
    kind = type(observer)
    return Plugin(kind.__qualname__, kind.__module__, "an observer", kind.__module__)


def _hooks_of(observer: Any) -> dict[str, Callable[..., Any]]:
    """Return an observer's methods by hook, each called with the arguments that it names.

    Raises:
        UsageError: it has none, or one that is no hook's name.
    """
    found = {}
    for name in dir(observer):
        if name.startswith("cnnzoo_"):
            hook = name.removeprefix("cnnzoo_")
            if hook not in Observers.HOOKS:
                nearest = did_you_mean(hook, Observers.HOOKS)
                raise UsageError(f"{type(observer).__name__}.{name} observes no hook{nearest}")
            found[hook] = _with_its_own(getattr(observer, name))
    if not found:
        raise UsageError(
            f"{type(observer).__name__} has no method that is named like a hook",
            "for example: def cnnzoo_epoch_end(self, run, epoch, metrics)",
        )
    return found


def _with_its_own(method: Callable[..., Any]) -> Callable[..., Any]:
    names = list(inspect.signature(method).parameters)
    return lambda **arguments: method(**{name: arguments[name] for name in names})


def core_plugin() -> Plugin:
    """Return the plugin that holds core's own data sets, metrics and commands."""
    from cnn_core import __version__, builtin

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
