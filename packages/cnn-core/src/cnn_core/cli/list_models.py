"""cnnzoo list-models."""

from __future__ import annotations

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, json_option, listing
from cnn_core.cli.params import Choice
from cnn_core.errors import UsageError
from cnn_core.specs import TASKS
from cnn_core.text import printable

__all__ = ["command"]


@click.command("list-models")
@click.argument("pattern", default="*")
@click.option("--task", type=Choice(TASKS), help="Only models for this task.")
@json_option
def command(pattern: str, task: str | None, as_json: bool) -> None:
    """List the models with names that match the shell pattern PATTERN.

    \b
    Examples:
      cnnzoo list-models
      cnnzoo list-models 'lenet*' --json
    """
    found = [
        (name, entry)
        for name, entry in registry.models().require_match(pattern)
        if task in (None, entry.spec.task)
    ]
    if not found and pattern != "*":
        raise UsageError(f"no model for {task} matches '{printable(pattern)}'", "leave out --task")
    if as_json:
        emit_json("models", [e.as_dict(name) for name, e in found])
        return
    listing(
        ("model", "year", "input", "parameters", "summary"),
        [
            (
                name,
                str(e.spec.paper.year),
                "x".join(map(str, e.spec.input)),
                e.spec.params,
                e.spec.summary,
            )
            for name, e in found
        ],
        right=("parameters",),
    )
