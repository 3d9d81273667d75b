"""cnnzoo list-views."""

from __future__ import annotations

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, json_option, listing

__all__ = ["command"]


@click.command("list-views")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """List the views (figures of a run) with names that match the shell pattern PATTERN.

    \b
    Examples:
      cnnzoo list-views
      cnnzoo list-views --json
    """
    found = registry.views().require_match(pattern)
    if as_json:
        emit_json("views", [e.as_dict(name) for name, e in found])
        return
    listing(
        ("view", "tasks", "from", "summary"),
        [
            (name, ", ".join(e.spec.tasks), e.plugin.distribution, e.spec.summary)
            for name, e in found
        ],
    )
    if not found and pattern == "*":
        click.echo("no view is installed: pip install cnn-viz", err=True)
