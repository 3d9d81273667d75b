"""The plugins and objects that watch one training."""

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
    """The plugins that watch one training; one that raises is reported and called no more.

    Changes to global state are undone and reported after each call.
    """

    HOOKS = ("fit_start", "step_end", "epoch_end", "checkpoint", "fit_end")

    def __init__(self, plugins: Plugins | None, watching: Iterable[Any] = ()) -> None:
        # Looked up once per training, since `step_end` is called after every step.
        self._callers = {
            hook: plugins.callers(f"cnnzoo_{hook}") if plugins is not None else []
            for hook in self.HOOKS
        }
        for observer in watching:
            plugin = _as_plugin(observer)
            for hook, caller in _hooks_of(observer).items():
                self._callers[hook].append((plugin, caller))

    def wants(self, hook: str) -> bool:
        """Whether any observer has this hook: for none, its arguments need not be computed."""
        return bool(self._callers[hook])

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call "fit_start", "step_end", "epoch_end", "checkpoint" or "fit_end"."""
        name = f"hook cnnzoo_{hook}"
        for plugin, caller in list(self._callers[hook]):
            with isolated(plugin, name, failed=functools.partial(self._silence, plugin, name)):
                caller(**arguments)

    def _silence(self, plugin: Plugin, name: str, error: BaseException) -> None:
        """Report a plugin's failure, and call none of its hooks for the rest of the training."""
        for hook, callers in self._callers.items():
            self._callers[hook] = [(p, caller) for p, caller in callers if p is not plugin]
        # Printed even if the plugin had faults before: what it writes is incomplete from now on.
        plugin.add_fault(f"{name}, now silenced for this run", error, again=True)


def _as_plugin(observer: Any) -> Plugin:
    """Return a plugin that stands for an observer object in complaints about it."""
    kind = type(observer)
    return Plugin(kind.__qualname__, kind.__module__, "an observer", kind.__module__)


def _hooks_of(observer: Any) -> dict[str, Callable[..., Any]]:
    """Return an observer's methods by hook; each is called with only the arguments it names.

    Raises:
        UsageError: no method is named like a hook, or one is named like an unknown hook.
    """
    found = {}
    for name in dir(observer):
        if name.startswith("cnnzoo_"):
            hook = name.removeprefix("cnnzoo_")
            if hook not in Observers.HOOKS:
                nearest = did_you_mean(hook, Observers.HOOKS)
                raise UsageError(f"{type(observer).__name__}.{name} observes no hook{nearest}")
            found[hook] = _with_named_arguments(getattr(observer, name))
    if not found:
        raise UsageError(
            f"{type(observer).__name__} has no method that is named like a hook",
            "for example: def cnnzoo_epoch_end(self, run, epoch, metrics)",
        )
    return found


def _with_named_arguments(method: Callable[..., Any]) -> Callable[..., Any]:
    # As pluggy does: a hook can get new arguments without breaking observers.
    names = list(inspect.signature(method).parameters)
    return lambda **arguments: method(**{name: arguments[name] for name in names})
