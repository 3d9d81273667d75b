"""cnnzoo new."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core.cli.output import say_path
from cnn_core.cli.params import PATH, Choice
from cnn_core.text import printable

__all__ = ["command"]


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=Choice(("arch", "data", "view", "command")),
    help="Kind of plugin. [default: from the prefix cnn-arch-, cnn-data-, cnn-viz- or cnn-cmd-]",
)
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="Directory to create. [default: ./NAME]",
)
def command(name: str, kind: str | None, out: Path | None) -> None:
    """Create a working plugin to edit: a network, a dataset, a view or a command.

    NAME is the name of the package, such as cnn-arch-mine. The package has tests, a README and a
    licence; `pip install -e` adds it to the zoo. Existing files are never overwritten. Prints the
    directory on stdout and the next steps on stderr.

    \b
    Examples:
      cnnzoo new cnn-arch-mine
      cnnzoo new cnn-data-flowers --out plugins/flowers
      cnnzoo new my-network --kind arch
    """
    from cnn_core.scaffold.writer import next_steps, write_plugin

    path = write_plugin(name, kind or "", out)
    click.echo("\n".join(map(printable, next_steps(path, name, kind or ""))), err=True)
    say_path(path)
