"""What is everyone's, and no plugin's to change: torch's functions, settings, others' specs.

A plugin is code and can do anything; this is against accidents. What was changed is put back and
said, so that the next plugin, and the next command, find what they expect. No torch here.
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

__all__ = ["guarded", "watch"]

Space = tuple[str, Any, dict[str, Any]]  # its name, a module or a class, what was callable in it

Setting = tuple[str, Callable[[], Any], Callable[[Any], object]]  # its name, to read, to set it


class Watched(Protocol):
    """Something that knows how it was."""

    def put_back(self) -> list[str]:
        """Undo what was changed; return what that was, in words."""


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(thing: Watched) -> None:
    """Have `thing` put back what plugins change in it."""
    _watched.add(thing)


@contextlib.contextmanager
def guarded() -> Iterator[list[str]]:
    """Run a plugin's code; then undo its changes to what is everyone's, and list them."""
    changed: list[str] = []
    with _torch_kept(changed):
        before = _read(_of_the_process())
        try:
            yield changed
        finally:
            changed += _set_again(before)
            for thing in list(_watched):
                changed += thing.put_back()


@contextlib.contextmanager
def _torch_kept(changed: list[str]) -> Iterator[None]:
    """Put back torch's functions, also where torch is only imported meanwhile."""
    finder = _TorchFinder()
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, finder)
    try:
        finder.look()
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)
        settings = _set_again(finder.settings)  # first: some of them swap functions
        for name, space, before in finder.spaces:
            now = vars(space)
            for key, value in before.items():
                if now.get(key) is not value and not _is_torchs_own(key, now.get(key)):
                    setattr(space, key, value)
                    changed.append(f"{name}.{key}")
        changed += settings


def _is_torchs_own(name: str, value: object) -> bool:
    """Whether a function was wrapped by torch itself, which does so when it compiles."""
    code, folder = getattr(value, "__code__", None), sys.modules["torch"].__path__[0]
    named = getattr(value, "__name__", "") == name
    return named and code is not None and code.co_filename.startswith(folder)


class _TorchFinder(MetaPathFinder):
    """Finds torch where it always is, and notes what is in it before anyone else sees it."""

    def __init__(self) -> None:
        self.spaces: list[Space] = []
        self.settings: list[tuple[Setting, Any]] = []

    def look(self) -> None:
        """Note torch's functions and settings; none if it is not imported."""
        self.spaces = _spaces()
        self.settings = _read(_of_torch()) if self.spaces else []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return where torch is, once; None for any other module."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.look()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _spaces() -> list[Space]:
    """Return the modules and classes of torch that networks are made of; none if not imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):
        return []
    modules = {"torch": torch, "torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional}
    layers = {f"torch.nn.{k}": v for k, v in vars(torch.nn).items() if isinstance(v, type)}
    spaces: dict[str, Any] = {**modules, "torch.Tensor": torch.Tensor, **layers}
    return [
        (name, space, {key: value for key, value in vars(space).items() if callable(value)})
        for name, space in spaces.items()
    ]


def _read(settings: list[Setting]) -> list[tuple[Setting, Any]]:
    return [(setting, setting[1]()) for setting in settings]


def _set_again(before: list[tuple[Setting, Any]]) -> list[str]:
    """Set what is no longer as it was; return the names of these settings."""
    changed = []
    for (name, read, set_), value in before:
        if read() != value:
            set_(value)
            changed.append(name)
    return changed


def _of_the_process() -> list[Setting]:
    return [
        ("the working directory", _folder, _go_to),
        ("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    ]


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


def _go_to(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _of_torch() -> list[Setting]:
    torch = sys.modules["torch"]
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
    """Return what was set, or None; `torch.get_default_device` would wake a GPU to answer."""
    places = getattr(sys.modules["torch"], "_GLOBAL_DEVICE_CONTEXT", None)
    return getattr(getattr(places, "device_context", None), "device", None)
