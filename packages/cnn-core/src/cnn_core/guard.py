"""What is everyone's, and no plugin's to change: torch's functions, and the specs of others.

A plugin is code and can do anything; this is against accidents. What was changed is put back and
said, so that the next plugin, and the next command, find what they expect. No torch here.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from importlib import util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Protocol

__all__ = ["guarded", "watch"]

Space = tuple[str, Any, dict[str, Any]]  # its name, a module or a class, what was callable in it


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
        try:
            yield changed
        finally:
            for thing in list(_watched):
                changed += thing.put_back()


@contextlib.contextmanager
def _torch_kept(changed: list[str]) -> Iterator[None]:
    """Put back torch's functions, also where torch is only imported meanwhile."""
    finder = _TorchFinder()
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, finder)
    try:
        finder.spaces = _spaces()
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)
        for name, space, before in finder.spaces:
            now = vars(space)
            for key, value in before.items():
                if now.get(key) is not value and not _is_torchs_own(key, now.get(key)):
                    setattr(space, key, value)
                    changed.append(f"{name}.{key}")


def _is_torchs_own(name: str, value: object) -> bool:
    """Whether a function was wrapped by torch itself, which does so when it compiles."""
    code, folder = getattr(value, "__code__", None), sys.modules["torch"].__path__[0]
    named = getattr(value, "__name__", "") == name
    return named and code is not None and code.co_filename.startswith(folder)


class _TorchFinder(MetaPathFinder):
    """Finds torch where it always is, and notes what is in it before anyone else sees it."""

    def __init__(self) -> None:
        self.spaces: list[Space] = []

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
                self.spaces = _spaces()

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
