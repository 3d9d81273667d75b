"""Notify plugins and other observers of the events of a training run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from cnn_core.errors import UsageError
from cnn_core.plugins.discovery import Plugin
from cnn_core.plugins.isolation import isolated
from cnn_core.plugins.loader import Plugins
from cnn_core.text import did_you_mean

__all__ = ["Observers"]


class Observers:
    """The observers of one run; one that raises is reported and not called again.

    Changes to global state are undone and reported after each call.
    """

    HOOKS = ("fit_start", "step_end", "epoch_end", "checkpoint", "fit_end")

    def __init__(self, plugins: Plugins | None, observers: Iterable[Any] = ()) -> None:
        # Looked up once per run, since `step_end` is called after every step.
        self._callers = {
            hook: plugins.callers(f"cnnzoo_{hook}") if plugins is not None else []
            for hook in self.HOOKS
        }
        for observer in observers:
            plugin = _as_plugin(observer)
            for hook, caller in _hooks_of(observer).items():
                self._callers[hook].append((plugin, caller))

    def wants(self, hook: str) -> bool:
        """Return whether any observer implements a hook; if not, skip computing its arguments."""
        return bool(self._callers[hook])

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call one of HOOKS, such as "epoch_end", on every observer that implements it."""
        name = f"hook cnnzoo_{hook}"
        for plugin, caller in list(self._callers[hook]):
            with isolated(plugin, name, failed=functools.partial(self._disable, plugin, name)):
                caller(**arguments)

    def _disable(self, plugin: Plugin, name: str, error: BaseException) -> None:
        """Report a plugin's failure, and call none of its hooks for the rest of the run."""
        for hook, callers in self._callers.items():
            self._callers[hook] = [(p, caller) for p, caller in callers if p is not plugin]
        # Printed even if the plugin had faults before: its output is incomplete from now on.
        plugin.add_fault(f"{name}, disabled for this run", error, always_warn=True)


def _as_plugin(observer: Any) -> Plugin:
    """Return a plugin that represents an observer object in fault messages."""
    kind = type(observer)
    return Plugin(kind.__qualname__, kind.__module__, "an observer", kind.__module__)


def _hooks_of(observer: Any) -> dict[str, Callable[..., Any]]:
    """Return an observer's methods by hook; each receives only the arguments that it declares.

    Raises:
        UsageError: no method is named after a hook, or a cnnzoo_ method after an unknown one.
    """
    found = {}
    for name in dir(observer):
        if name.startswith("cnnzoo_"):
            hook = name.removeprefix("cnnzoo_")
            if hook not in Observers.HOOKS:
                nearest = did_you_mean(hook, Observers.HOOKS)
                raise UsageError(f"{type(observer).__name__}.{name}: unknown hook{nearest}")
            found[hook] = _with_named_arguments(getattr(observer, name))
    if not found:
        raise UsageError(
            f"{type(observer).__name__} has no method named after a hook",
            "for example: def cnnzoo_epoch_end(self, run, epoch, metrics)",
        )
    return found


def _with_named_arguments(method: Callable[..., Any]) -> Callable[..., Any]:
    # As in pluggy: adding an argument to a hook does not break existing observers.
    names = list(inspect.signature(method).parameters)
    return lambda **arguments: method(**{name: arguments[name] for name in names})
