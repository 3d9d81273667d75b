"""Run a plugin's code so that its output, its changes and its failures do no harm."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator

from cnn_core.errors import Terminated, ZooError, is_out_of_memory
from cnn_core.plugins.discovery import Plugin, StrictError, describe, some
from cnn_core.plugins.guard import restored

__all__ = ["ENDINGS", "isolated", "required"]

ENDINGS = (KeyboardInterrupt, Terminated)  # they end a command, even inside a plugin's code

Handler = Callable[[BaseException], object]


@contextlib.contextmanager
def isolated(
    plugin: Plugin, doing: str, *, failed: Handler | None = None, silent: bool = False
) -> Iterator[None]:
    """Run a plugin's code and keep its output, its changes to global state and its failure apart.

    `doing` names the activity in fault messages. Printed text goes to stderr, or is a fault where
    the plugin should be `silent`. Changes to global state are undone and reported. An error of
    any kind, SystemExit included, is passed to `failed`, which may raise; without `failed` it
    becomes a fault of the plugin. Unless something is raised, the code after the block runs.

    Raises:
        KeyboardInterrupt, Terminated: the user, or the system, ends the command.
        StrictError: there is a fault, under CNNZOO_STRICT=1.
    """
    output, error = io.StringIO(), None
    to = output if silent else sys.stderr
    # stdout belongs to the command: a line that a plugin prints would break --json.
    with contextlib.redirect_stdout(to), restored() as changed:
        try:
            yield
        except (StrictError, *ENDINGS):
            raise
        except BaseException as raised:  # a plugin may raise SystemExit, too
            error = raised
    if output.getvalue():
        plugin.add_fault(doing, f"prints {output.getvalue()[:40]!r}")
    if changed:
        plugin.add_fault(doing, f"changes {some(changed)}, undone")
    # Last, because `failed` may raise, which would hide the faults above.
    if error is not None and failed is not None:
        failed(error)
    elif error is not None:
        plugin.add_fault(doing, error)


def required(plugin: Plugin, failure: str) -> Handler:
    """Return a handler for `isolated` that raises PluginError: "`failure`: cause".

    These are raised unchanged, because they are no defect of the plugin or have a hint already:
    ZooError, OSError, lack of memory, and any error of core's own code.
    """

    def fail(error: BaseException) -> None:
        clear = isinstance(error, ZooError | OSError) or is_out_of_memory(error)
        if clear or plugin.distribution == "cnn-core":
            raise error
        raise plugin.failure(f"{failure}: {describe(error)}") from error

    return fail
