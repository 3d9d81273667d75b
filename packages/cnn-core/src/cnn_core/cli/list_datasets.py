"""cnnzoo list-datasets."""

from __future__ import annotations

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, json_option, listing

__all__ = ["command"]


@click.command("list-datasets")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """List the datasets with names that match the shell pattern PATTERN.

    \b
    Examples:
      cnnzoo list-datasets
      cnnzoo list-datasets --json
    """
    found = registry.datasets().require_match(pattern)
    if as_json:
        emit_json("datasets", [e.as_dict(name) for name, e in found])
        return
    listing(
        ("dataset", "task", "image", "classes", "train", "test", "summary"),
        [
            (
                name,
                e.spec.task,
                "x".join(str(side or "*") for side in e.spec.image),
                len(e.spec.classes) or "",
                e.spec.splits.get("train", ""),
                e.spec.splits.get("test", ""),
                e.spec.summary,
            )
            for name, e in found
        ],
        right=("classes", "train", "test"),
    )
