"""cnnzoo list-keys."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatch
from typing import Any

import click

from cnn_core.cli.output import emit_json, json_option, listing
from cnn_core.errors import UnknownNameError

__all__ = ["as_toml", "command"]


@click.command("list-keys")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """List the recipe keys with names that match the shell pattern PATTERN.

    cnnzoo train --set KEY=VALUE sets a key. The defaults are those of a recipe file; without a
    recipe, cnnzoo train chooses some keys from the network and the images, and prints them. --json
    also gives the publication that defines a key.

    \b
    Examples:
      cnnzoo list-keys
      cnnzoo list-keys '*lr*'
      cnnzoo list-keys clip_norm --json
    """
    from cnn_core.runs.recipe_keys import recipe_keys

    keys = recipe_keys()
    found = [key for key in keys if fnmatch(key.key, pattern)]
    if not found:
        names = [key.key for key in keys]
        raise UnknownNameError("recipe key", pattern, names, "see: cnnzoo list-keys")
    if as_json:
        emit_json("keys", [dataclasses.asdict(key) for key in found])
        return
    listing(
        ("key", "values", "default", "meaning"),
        [(k.key, k.values or k.kind, as_toml(k.default), k.meaning) for k in found],
    )


def as_toml(value: Any) -> str:
    """Return a default value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else str(value)
