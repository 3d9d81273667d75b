"""The plugins and objects that watch one training."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

from cnn_core.errors import UsageError
from cnn_core.plugins.discovery import Plugin, StrictError, some
from cnn_core.plugins.guard import guarded
from cnn_core.plugins.isolation import ENDINGS, unchanged
from cnn_core.plugins.loader import Plugins
from cnn_core.text import did_you_mean

__all__ = ["Observers"]


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
