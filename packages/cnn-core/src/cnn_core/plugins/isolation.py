"""Run a plugin's code so that what it prints, changes or raises stays its own."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator

from cnn_core.errors import Terminated, ZooError, is_out_of_memory
from cnn_core.plugins.discovery import Plugin, describe, some
from cnn_core.plugins.guard import guarded

__all__ = ["ENDINGS", "answerable", "kept_apart", "unchanged"]

ENDINGS = (KeyboardInterrupt, Terminated)  # what ends a command in the midst of a plugin's code


@contextlib.contextmanager
def kept_apart(plugin: Plugin, where: str) -> Iterator[None]:
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
