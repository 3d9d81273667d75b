"""Run plugin code, and contain its output, its changes to global state and its errors."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator

from cnn_core.errors import Terminated, ZooError, is_out_of_memory
from cnn_core.plugins.discovery import Plugin, StrictError, abbreviated, describe
from cnn_core.plugins.guard import restored

__all__ = ["INTERRUPTS", "isolated", "required"]

INTERRUPTS = (KeyboardInterrupt, Terminated)  # they end a command even inside plugin code

Handler = Callable[[BaseException], object]


@contextlib.contextmanager
def isolated(
    plugin: Plugin, stage: str, *, failed: Handler | None = None, silent: bool = False
) -> Iterator[None]:
    """Run a plugin's code, and contain its output, its changes to global state and its errors.

    `stage` names the activity in fault messages. Printed text goes to stderr; with `silent` it is
    a fault. Changes to global state are undone and reported. Any error, including SystemExit, is
    passed to `failed`, which may raise; without `failed` it becomes a fault of the plugin. Unless
    something is raised, execution continues after the block.

    Raises:
        KeyboardInterrupt, Terminated: the user or the system stopped the command.
        StrictError: a fault would be logged as a warning, under CNNZOO_STRICT=1.
    """
    output, error = io.StringIO(), None
    target = output if silent else sys.stderr
    # stdout belongs to the command: a line that a plugin prints would break --json.
    with contextlib.redirect_stdout(target), restored() as changed:
        try:
            yield
        except (StrictError, *INTERRUPTS):
            raise
        except BaseException as raised:  # a plugin may raise SystemExit, too
            error = raised
    if output.getvalue():
        plugin.add_fault(stage, f"printed {output.getvalue()[:40]!r}")
    if changed:
        plugin.add_fault(stage, f"changed {abbreviated(changed)} (undone)")
    # Last, because `failed` may raise, and the faults above must be recorded before that.
    if error is not None and failed is not None:
        failed(error)
    elif error is not None:
        plugin.add_fault(stage, error)


def required(plugin: Plugin, failure: str) -> Handler:
    """Return a `failed` handler for `isolated` that raises PluginError("`failure`: cause").

    ZooError, OSError, out-of-memory errors and errors of core's own plugin are raised unchanged:
    they are not the plugin's fault, or already have a hint.
    """

    def fail(error: BaseException) -> None:
        unchanged = isinstance(error, ZooError | OSError) or is_out_of_memory(error)
        if unchanged or plugin.distribution == "cnn-core":
            raise error
        raise plugin.failure(f"{failure}: {describe(error)}") from error

    return fail
