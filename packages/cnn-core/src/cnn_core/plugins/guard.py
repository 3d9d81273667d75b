"""Protect global state from plugins: settings of the process and of torch, and others' specs.

A plugin is trusted code and can do anything; this guards against accidents. What a plugin changed
is undone and reported, so that the next plugin, and the next command, start from the same state.
Functions of torch that a plugin replaces stay replaced: `cnnzoo doctor` finds them, because
comparing them around every call would cost too much. Nothing here imports torch.
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

Setting = tuple[str, Callable[[], Any], Callable[[Any], object]]  # its name, to read, to set it
Snapshot = list[tuple[Setting, Any]]


class Watched(Protocol):
    """An object that remembers its original state."""

    def undo_changes(self) -> list[str]:
        """Undo what was changed; return the names of the changed things."""


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(thing: Watched) -> None:
    """Undo what plugins change in `thing`, from now on, after each of their calls."""
    _watched.add(thing)


@contextlib.contextmanager
def restored() -> Iterator[list[str]]:
    """Run a plugin's code, then undo its changes to global state; yield the list of them.

    The list is empty until the block ends.
    """
    changed: list[str] = []
    before = _read(_process_settings())
    with when_torch_is_imported(lambda: before.extend(_read(_torch_settings()))):
        try:
            yield changed
        finally:
            changed += _set_again(before)
            for thing in list(_watched):
                changed += thing.undo_changes()


@contextlib.contextmanager
def when_torch_is_imported(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` now if torch is imported, else as soon as the block's code has imported it.

    That is before the code that imports torch for the first time can change anything in it.
    """
    if "torch" in sys.modules:
        act()
        yield
        return
    finder = _TorchFinder(act)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # torch was imported: it has removed itself
            sys.meta_path.remove(finder)


class _TorchFinder(MetaPathFinder):
    """Finds torch where it always is, and acts once its module has been executed."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of torch; None for any other module."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)  # or `util.find_spec` would ask this finder again
        spec = util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.act()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _read(settings: list[Setting]) -> Snapshot:
    return [(setting, setting[1]()) for setting in settings]


def _set_again(before: Snapshot) -> list[str]:
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
    if not hasattr(torch, "nn"):  # it failed to import, or is being imported right now
        return []
    mkldnn, modes = torch.backends.mkldnn, torch.get_deterministic_debug_mode
    return [
        ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("torch's default device", _default_device, torch.set_default_device),
        ("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        ("torch's deterministic mode", modes, torch.set_deterministic_debug_mode),
        (
            "torch.backends.mkldnn.enabled",
            lambda: mkldnn.enabled,
            lambda value: setattr(mkldnn, "enabled", value),
        ),
    ]


def _default_device() -> Any:
    """Return the device that was set, or None; `torch.get_default_device` would wake a GPU."""
    context = getattr(sys.modules["torch"], "_GLOBAL_DEVICE_CONTEXT", None)
    return getattr(getattr(context, "device_context", None), "device", None)
