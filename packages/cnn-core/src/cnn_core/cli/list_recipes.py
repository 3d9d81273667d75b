"""cnnzoo list-recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, json_option, listing

__all__ = ["command"]


@click.command("list-recipes")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """List the recipes with names that match the shell pattern PATTERN, and their results.

    \b
    Examples:
      cnnzoo list-recipes
      cnnzoo list-recipes 'lenet5-*'
    """
    found = registry.recipes().require_match(pattern)
    if as_json:
        emit_json("recipes", [e.as_dict(name) for name, e in found])
        return
    listing(
        ("recipe", "model", "dataset", "origin", "result", "summary"),
        [
            (
                name,
                e.spec.model,
                e.spec.dataset,
                e.spec.origin,
                _result(e.spec.claim),
                e.spec.summary,
            )
            for name, e in found
        ],
    )


def _result(claim: Mapping[str, Any]) -> str:
    """Return "91.10 ± 0.12 % (n=3)", or "not measured"."""
    if not claim:
        return "not measured"
    return f"{100 * claim['mean']:.2f} ± {100 * claim['std']:.2f} % (n={claim['n']})"
