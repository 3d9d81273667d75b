"""Plugins and a thread for the tests of the core."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import types
from pathlib import Path

import pytest

from servers import Server

ROOT = Path(__file__).parents[2]
FASHION = ROOT.parent / "shared" / "data" / "fashion-mnist"


@pytest.fixture(scope="session")
def fashion() -> Path:
    """The folder of the real Fashion-MNIST, where there is one beside the repository."""
    if not FASHION.is_dir():
        pytest.skip(f"no {FASHION.relative_to(ROOT.parent)} beside the repository")
    return FASHION


@pytest.fixture
def one_thread():
    """Limit torch to one thread: sums in another order have other bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Plugins of a test's own, in its own process

# A sound plugin with one model, for tests to spoil.
GOOD = """
from cnn_core import ModelSpec, Paper, hookimpl

def model(name="tiny", **changes):
    fields = dict(
        name=name, target="tiny_net:tiny", family="tiny", variant="tiny", summary="tiny",
        paper=Paper(title="t", authors="a", year=2020, url="https://example.org"),
        input=(1, 8, 8), min_size=8, num_classes=10, params=650, macs=640,
        stages=("head",), cam_stage="head",
    )
    return ModelSpec(**{**fields, **changes})

@hookimpl
def cnnzoo_models():
    return [model()]
"""


@pytest.fixture
def good_source() -> str:
    return GOOD


CATALOGUES = ("models", "datasets", "recipes", "metrics", "views", "weights", "commands", "checks")


@pytest.fixture
def command_leaves_no_trace(monkeypatch):
    """Undo what `main` does to its process, which is ours here."""
    log, handler = logging.getLogger("cnn_core"), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def in_process(capsys, command_leaves_no_trace):
    """Return a function that runs the command in this process: (exit code, stdout, stderr)."""
    from cnn_core.cli import main

    def run_command(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return main([*map(str, args)]), *capsys.readouterr()

    return run_command


@pytest.fixture
def forget():
    """Return a function that has the plugins loaded anew when they are next asked for."""
    from cnn_core import plugins, registry

    def forget():
        plugins.plugins.cache_clear()
        for name in CATALOGUES:
            getattr(registry, name).cache_clear()

    return forget


@pytest.fixture
def zoo(monkeypatch, forget):
    """Return a function that starts anew with the given plugins, core's among them."""
    from cnn_core.plugins import loader

    def start(*found):
        forget()
        monkeypatch.setattr(loader, "discover", lambda: list(found))
        return loader.plugins()

    yield start
    monkeypatch.undo()
    forget()


@pytest.fixture
def plugin(monkeypatch, good_source):
    """Return a function that makes a plugin whose module is the sound one and `more`."""
    from cnn_core.plugins.discovery import Plugin

    def make(name, more="", source=good_source):
        module = types.ModuleType(f"{name}_plugin")
        exec(source + more, vars(module))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Plugin(name, f"cnn-arch-{name}", "1.2.3", module.__name__)

    return make


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
