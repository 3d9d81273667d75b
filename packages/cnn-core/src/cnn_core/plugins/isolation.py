"""Run a plugin's code so that its output, its changes and its failures harm nobody else."""

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

    `doing` says in complaints what the plugin was doing. What it prints goes to stderr, or is a
    fault where plugins are to be `silent`. Its changes to global state are undone and reported.
    Any error, also one that is no Exception, is given to `failed`, which may raise; without it
    the error becomes a fault of the plugin. Either way the block then ends, and what follows runs.

    Raises:
        KeyboardInterrupt, Terminated: the user, or the system, ends the command.
        StrictError: a fault was reported under CNNZOO_STRICT=1.
    """
    output, error = io.StringIO(), None
    to = output if silent else sys.stderr
    with contextlib.redirect_stdout(to), restored() as changed:
        try:
            yield
        except (StrictError, *ENDINGS):
            raise
        except BaseException as raised:  # SystemExit and GeneratorExit are the plugin's, too
            error = raised
    if output.getvalue():
        plugin.add_fault(doing, f"prints {output.getvalue()[:40]!r}")
    if changed:
        plugin.add_fault(doing, f"changes {some(changed)}, undone")
    if error is not None and failed is not None:
        failed(error)
    elif error is not None:
        plugin.add_fault(doing, error)


def required(plugin: Plugin, failure: str) -> Handler:
    """Return a handler for `isolated` that raises PluginError: "`failure`: cause".

    Errors that need no translation are raised as they are: those that already say what helps,
    of the system, for lack of memory, and defects of our own.
    """

    def fail(error: BaseException) -> None:
        plain = isinstance(error, ZooError | OSError) or is_out_of_memory(error)
        if plain or plugin.distribution == "cnn-core":
            raise error
        raise plugin.failure(f"{failure}: {describe(error)}") from error

    return fail
