"""Print the public API: hooks, specs, names, signatures, recipe keys, commands.

What it printed last is in api_snapshot.txt. After a change that is meant (docs/versioning.md):

    python tests/repo/api_snapshot.py > tests/repo/api_snapshot.txt
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from cnn_core import hookspecs, specs
from cnn_core.builtin import plugin as builtin
from cnn_core.cli import app
from cnn_core.runs.recipe import Recipe
from cnn_viz import plugin as viz

MODULES = (
    "cnn_core",
    "cnn_core.cli.output",
    "cnn_core.data",
    "cnn_core.errors",
    "cnn_core.weights.keymap",
    "cnn_core.layers",
    "cnn_core.lazy",
    "cnn_core.registry",
    "cnn_core.specs",
    "cnn_core.tasks",
    "cnn_core.testing",
    "cnn_core.text",
    "cnn_core.training",
    "cnn_viz",
    "cnn_viz.style",
)


def snapshot() -> str:
    """Return the whole of it, a line for each thing that can break someone's code."""
    parts = (
        ("hooks", _hooks()),
        ("fields", _fields()),
        ("names", _names()),
        ("recipe keys", _recipe_keys()),
        ("commands", _commands()),
    )
    return "\n".join(f"# {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts)


def _hooks() -> Iterator[str]:
    for name, value in sorted(vars(hookspecs).items()):
        if name.startswith("cnnzoo_"):
            yield f"{name}{_signature(value)}"


def _fields() -> Iterator[str]:
    for name in sorted(specs.__all__):
        for field in dataclasses.fields(getattr(specs, name)):
            yield f"{name}.{field.name}: {field.type}{_default(field)}"


def _names() -> Iterator[str]:
    for module in MODULES:
        for name in sorted(import_module(module).__all__):
            value = getattr(import_module(module), name)
            yield f"{module}.{name}{_signature(value) if inspect.isroutine(value) else ''}"


def _recipe_keys() -> Iterator[str]:
    for field in dataclasses.fields(Recipe):
        yield f"{field.name}: {field.type}{_default(field)}"


def _commands() -> Iterator[str]:
    yield from _parameters("cnnzoo", app)
    for name in builtin.COMMANDS:
        module = import_module(f"cnn_core.cli.{name.replace('-', '_')}")
        yield from _parameters(f"cnnzoo {name}", module.command)
    for spec in viz.cnnzoo_commands():
        module_name, _, name = spec.target.partition(":")
        yield from _parameters(f"cnnzoo {spec.name}", getattr(import_module(module_name), name))


def _parameters(command: str, found: click.Command) -> Iterator[str]:
    yield command
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            yield f"{command} {'/'.join(parameter.opts)}"
        else:
            yield f"{command} {(parameter.name or '').upper()}"


def _signature(value: Any) -> str:
    """Return a signature without the addresses that some defaults print."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    return " = …" if field.default_factory is not dataclasses.MISSING else ""


if __name__ == "__main__":
    print(snapshot(), end="")
