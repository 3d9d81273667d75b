"""The command group, and `main`, which turns every outcome into an exit code.

Exit codes: 0 success, 1 failure, 2 usage error, 3 corrupt or untrusted input, 4 numerical
failure, 5 out of memory or disk space, 6 plugin failure, 130 interrupted (Ctrl-C),
143 terminated (SIGTERM).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import cast

import click

from cnn_core.builtin import plugin as builtin
from cnn_core.errors import PluginError, ResourceError, Terminated, ZooError, is_out_of_memory
from cnn_core.plugins.discovery import describe
from cnn_core.plugins.origins import plugin_at_fault
from cnn_core.text import printable
from cnn_core.version import __version__

__all__ = ["app", "main"]

EXAMPLES = """\b
Examples:
  cnnzoo demo
  cnnzoo list-models
  cnnzoo show lenet5
  cnnzoo train lenet5_modern --data digits
"""


class Zoo(click.Group):
    """Core's commands, which run without loading plugins, and plugins' commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from cnn_core import registry
        from cnn_core.registry.names import base_name

        from_plugins = [
            name for name, _ in registry.commands() if base_name(name) not in builtin.COMMANDS
        ]
        return [*builtin.COMMANDS, *from_plugins]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from cnn_core import registry

        if name in builtin.COMMANDS:
            found = import_module(f"cnn_core.cli.{name.replace('-', '_')}").command
        else:
            entry = registry.commands().entry(name)
            found = registry.resolve(entry)
            if not isinstance(found, click.Command):
                target = f"{entry.spec.target} of plugin '{entry.plugin.name}'"
                raise PluginError(f"{target} is a {type(found).__name__}, not a click.Command")
        return cast("click.Command", found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0].startswith("-"):  # let click report the unknown option
            return super().resolve_command(ctx, args)
        return args[0], self.get_command(ctx, args[0]), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List names and summaries from the specs, without importing any command."""
        from cnn_core import registry
        from cnn_core.registry.names import base_name

        summaries = dict(builtin.COMMANDS)
        for name, entry in registry.commands():
            if base_name(name) not in builtin.COMMANDS:
                summaries[name] = printable(f"{entry.spec.summary} ({entry.plugin.distribution})")
        with formatter.section("Commands"):
            formatter.write_dl(list(summaries.items()))


def _block(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> None:
    from cnn_core.plugins.discovery import block

    for name in names:
        block(name)


@click.group(
    cls=Zoo,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--no-plugin",
    metavar="NAME",
    multiple=True,
    # Eager, to run before --help, whose list of commands loads the plugins.
    is_eager=True,
    expose_value=False,
    callback=_block,
    help="Do not load this plugin. May be repeated.",
)
@click.option("--traceback", is_flag=True, help="Show the full traceback of an error.")
@click.version_option(__version__, "-V", "--version", prog_name="cnnzoo")
def app(traceback: bool) -> None:
    """The zoo of famous CNNs: read them, train them, see what they learned."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. The console script calls this."""
    args = list(sys.argv[1:] if argv is None else argv)
    if instruction := os.environ.get("_CNNZOO_COMPLETE"):
        from click.shell_completion import shell_complete

        logging.disable()  # a warning about a plugin must not end up in the command line
        return shell_complete(app, {}, "cnnzoo", "_CNNZOO_COMPLETE", instruction)
    # By default SIGTERM ends Python without running `finally` blocks; an exception runs them.
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with _warnings_on_stderr():
            return _run(args)
    finally:  # None: a handler that was not set from Python and cannot be restored
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _run(args: list[str]) -> int:
    """Run a command line; turn every exception into an exit code and a few lines."""
    # Parsed by hand, because errors may occur before click has parsed the options.
    traceback = "--traceback" in args[: _command_position(args)]
    try:
        code = _invoke(args)
        # Flush here, where a closed pipe is handled; at exit Python would print an error.
        sys.stdout.flush()
    except BrokenPipeError:
        return _closed_pipe()
    except click.ClickException as error:
        return _misuse(error)
    except (KeyboardInterrupt, click.Abort) as stop:
        return _stopped("interrupted", stop, signal.SIGINT)
    except Terminated as stop:
        return _stopped("terminated", stop, signal.SIGTERM)
    except SystemExit:
        raise
    except BaseException as error:  # a plugin can raise anything
        if traceback:
            raise
        return _fail(error)
    return code


def _invoke(args: list[str]) -> int:
    """Parse and run a command line; do not let click turn Ctrl-C and closed pipes into exit 1."""
    try:
        with app.make_context("cnnzoo", args) as ctx:
            if os.environ.get("NO_COLOR"):  # click ignores it
                ctx.color = False
            app.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _command_position(args: list[str]) -> int:
    """Return the index of the command's name in the arguments."""
    for position, arg in enumerate(args):
        is_value = position > 0 and args[position - 1] == "--no-plugin"
        if not arg.startswith("-") and not is_value:
            return position
    return len(args)


def _fail(error: BaseException) -> int:
    """Print an error in one to three lines and return its exit code."""
    zoo_error = error if isinstance(error, ZooError) else _as_zoo_error(error)
    lines = "\n".join([f"error: {zoo_error}", *_notes(error)]).split("\n")
    click.echo("\n".join(map(printable, lines)), err=True)
    return zoo_error.exit_code


def _misuse(error: click.ClickException) -> int:
    """Print click's error and how to get help; for a group without a command, print its help."""
    message = "\n".join(map(printable, error.format_message().split("\n")))
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(message, err=True)
        return error.exit_code
    click.echo(f"error: {message}", err=True)
    context = getattr(error, "ctx", None)
    click.echo(f"see: {context.command_path if context else 'cnnzoo'} --help", err=True)
    return error.exit_code


def _stopped(how: str, stop: BaseException, signum: int) -> int:
    """Print how the command was stopped and, if there is one, the command that resumes it."""
    click.echo("\n".join(map(printable, [how, *_notes(stop)])), err=True)
    return 128 + signum


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _as_zoo_error(error: BaseException) -> ZooError:
    """Convert any other error to a ZooError with a suitable exit code and hint."""
    if isinstance(error, OSError):
        return _os_error(error)
    if is_out_of_memory(error):
        return ResourceError("out of memory", "try --fit-memory, or a smaller --batch-size")
    # If another process ends, gloo raises RuntimeError: "Connection closed by peer".
    if "RANK" in os.environ and "peer" in str(error):
        hint = "torchrun --max-restarts=N restarts all processes up to N times"
        return ZooError("another process of this run has ended", hint)
    if plugin := plugin_at_fault(error):
        return plugin.failure(f"{plugin.label}: {describe(error)}")
    return ZooError(
        f"unexpected {describe(error)}",
        "this is a bug: run cnnzoo --traceback COMMAND … for the traceback",
    )


def _os_error(error: OSError) -> ZooError:
    """Return an error with the file and the reason of a failed system call."""
    prefix = f"{error.filename}: " if error.filename else ""
    message = f"{prefix}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(message, "free some space, then resume with --resume")
    return ZooError(message)


def _closed_pipe() -> int:
    """Exit quietly and successfully after the reader, such as `head`, closed the pipe."""
    # Python flushes stdout again at exit; that must not raise another error.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return 0


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print core's warnings, for example about broken plugins, as plain lines on stderr."""
    logger, handler = logging.getLogger("cnn_core"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    # Handlers of the root logger would print each warning a second time.
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
