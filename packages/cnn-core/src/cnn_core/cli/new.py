"""cnnzoo new."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core.cli.output import say_path
from cnn_core.cli.params import Choice
from cnn_core.text import printable

__all__ = ["command"]


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=Choice(("arch", "data", "view", "command")),
    help="What it adds, where its name does not begin with cnn-arch-, -data-, -viz- or -cmd-.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The folder to make, not ./NAME."
)
def command(name: str, kind: str | None, out: Path | None) -> None:
    """Write a plugin that works as it is: a network, a dataset, a view or a command.

    NAME is that of the package: cnn-arch-mine. It comes with tests, README and licence, and
    `pip install -e` makes it part of the zoo. Nothing is overwritten. Prints the folder on
    stdout, and on stderr what to do next.

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
