"""Protect global state from plugins: process settings, torch settings and registered specs.

A plugin is trusted code and can do anything; this guards against accidents. Changes are undone and
reported, so that the next plugin starts from the same state. torch functions that a plugin
replaces stay replaced, because comparing them around every call would cost too much;
`cnnzoo doctor` detects them. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib import util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Protocol

__all__ = ["restored", "watch", "when_torch_is_imported"]

Setting = tuple[str, Callable[[], Any], Callable[[Any], object]]  # name, getter, setter
Snapshot = list[tuple[Setting, Any]]


class Watched(Protocol):
    """An object that remembers its original state."""

    def undo_changes(self) -> list[str]:
        """Restore the original state; return the names of the parts that had changed."""


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(thing: Watched) -> None:
    """From now on, undo changes to `thing` after each call of a plugin's code."""
    _watched.add(thing)


@contextlib.contextmanager
def restored() -> Iterator[list[str]]:
    """Run a plugin's code, then undo its changes to global state.

    Yields a list that receives the names of the changed settings when the block ends.
    """
    changed: list[str] = []
    before = _read(_process_settings())
    with when_torch_is_imported(lambda: before.extend(_read(_torch_settings()))):
        try:
            yield changed
        finally:
            changed += _restore(before)
            for thing in list(_watched):
                changed += thing.undo_changes()


@contextlib.contextmanager
def when_torch_is_imported(action: Callable[[], object]) -> Iterator[None]:
    """Call `action` now if torch is imported, else right after the block imports it.

    In the latter case `action` runs before the importing code can change torch's settings.
    """
    if "torch" in sys.modules:
        action()
        yield
        return
    finder = _TorchFinder(action)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the finder removed itself when torch was imported
            sys.meta_path.remove(finder)


class _TorchFinder(MetaPathFinder):
    """An import hook that calls `action` once torch's module has been executed."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return torch's module spec, or None for any other module."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)  # otherwise `util.find_spec` would call this finder again
        spec = util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.action()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _read(settings: list[Setting]) -> Snapshot:
    return [(setting, setting[1]()) for setting in settings]


def _restore(before: Snapshot) -> list[str]:
    """Restore the settings that differ from `before`; return their names."""
    changed = []
    for (name, read, set_), value in before:
        if read() != value:
            set_(value)
            changed.append(name)
    return changed


def _process_settings() -> list[Setting]:
    return [
        ("the working directory", _working_directory, _change_directory),
        ("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    ]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _change_directory(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _torch_settings() -> list[Setting]:
    torch = sys.modules["torch"]
    if not hasattr(torch, "nn"):  # its import failed, or is still running
        return []
    mkldnn, debug_mode = torch.backends.mkldnn, torch.get_deterministic_debug_mode
    return [
        ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("torch's default device", _default_device, torch.set_default_device),
        ("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        ("torch's deterministic mode", debug_mode, torch.set_deterministic_debug_mode),
        (
            "torch.backends.mkldnn.enabled",
            lambda: mkldnn.enabled,
            lambda value: setattr(mkldnn, "enabled", value),
        ),
    ]


def _default_device() -> Any:
    """Return the default device if one is set; `torch.get_default_device` may initialise CUDA."""
    context = getattr(sys.modules["torch"], "_GLOBAL_DEVICE_CONTEXT", None)
    return getattr(getattr(context, "device_context", None), "device", None)
