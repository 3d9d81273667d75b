"""cnnzoo show."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, heading, json_option, table
from cnn_core.cli.params import MODEL
from cnn_core.registry.names import recipes_of
from cnn_core.specs import ModelSpec
from cnn_core.text import paper_table, printable

if TYPE_CHECKING:
    from cnn_core.layers import Trace

__all__ = ["command"]


@click.command("show")
@click.argument("model", type=MODEL)
@json_option
def command(model: str, as_json: bool) -> None:
    """Show a model: its paper, and each stage's output shape, parameters and receptive field.

    \b
    Examples:
      cnnzoo show lenet5
      cnnzoo show lenet5_modern --json
    """
    entry = registry.models().entry(model)
    spec = entry.spec
    # Imported after the lookup, so that a typo fails at once: importing torch takes seconds.
    from cnn_core.create import create_model
    from cnn_core.layers import trace

    traced = trace(lambda: create_model(model), spec.stages, spec.input)
    published = paper_table(importlib.import_module(spec.target.partition(":")[0]).__doc__ or "")
    if as_json:
        content = {
            **entry.as_dict(model),
            "paper_table": published,
            "trace": dataclasses.asdict(traced),
        }
        emit_json("model", content)
        return
    heading(f"{model}: {spec.variant}")
    click.echo(printable(str(spec.paper)))
    source = f"{entry.plugin.distribution} {entry.plugin.version}"
    click.echo(printable(f"{spec.summary}; from {source}"))
    click.echo()
    if published:
        heading("In the paper")
        for line in published.splitlines():
            click.echo(printable(line))
        click.echo()
    heading("In the code")
    _stages(traced, with_connections=bool(spec.connections))
    _footnotes(entry)


def _stages(traced: Trace, *, with_connections: bool) -> None:
    """Print a row per stage and a total; only LeNet's paper counts connections."""

    def connections(count: int) -> list[int]:
        return [count] if with_connections else []

    rows = [
        (
            stage.name,
            "x".join(map(str, stage.output)),
            stage.params,
            stage.macs,
            *connections(stage.connections),
            f"{stage.receptive_field} px",
        )
        for stage in traced.stages
    ]
    total = ("total", "", traced.params, traced.macs, *connections(traced.connections), "")
    numbers = ("parameters", "MACs", *["connections"] * with_connections, "receptive field")
    table(("stage", "output", *numbers), [*rows, total], right=numbers)


def _footnotes(entry: registry.Entry[ModelSpec]) -> None:
    """Print the input size, departures, reported results and recipes of a model."""
    spec = entry.spec
    size = "x".join(map(str, spec.input))
    click.echo(
        f"\ninput {size}, at least {spec.min_size} px; default Grad-CAM stage: {spec.cam_stage}"
    )
    click.echo("departures from the paper:" + ("" if spec.departures else " none"))
    for departure in spec.departures:
        click.echo(f"  {printable(departure)}")
    for data, result in spec.reported.items():
        click.echo(printable(f"reported in the paper on {data}: {result}"))
    recipe_names = [registry.recipes().shown_name(recipe) for recipe in recipes_of(entry)]
    click.echo(f"recipes: {', '.join(recipe_names) or 'none'}")
