"""cnnzoo list-weights."""

from __future__ import annotations

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, json_option, listing
from cnn_core.specs import WeightsSpec

__all__ = ["command"]


@click.command("list-weights")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """List the published weights with names that match the shell pattern PATTERN.

    A model's default weights, marked with *, are used where only the model is named. Accuracies
    are the publishers' own.

    \b
    Examples:
      cnnzoo list-weights
      cnnzoo list-weights 'resnet*'
    """
    from cnn_core.weights.published import is_here

    found = registry.weights().require_match(pattern)
    if as_json:
        rows = [{**e.as_dict(name), "here": is_here(e.spec)} for name, e in found]
        emit_json("weights", rows)
        return
    listing(
        ("weights", "data", "classes", "accuracy", "size", "licence", "here"),
        [
            (
                f"{name}{' *' if e.spec.default else ''}",
                e.spec.data,
                f"{e.spec.num_classes:,}",
                _accuracy(e.spec),
                f"{e.spec.bytes / 1e6:,.1f} MB",
                e.spec.licence,
                "yes" if is_here(e.spec) else "no",
            )
            for name, e in found
        ],
    )
    if any(e.spec.default for _, e in found):
        click.echo("* the default weights of a model: used if only the model is named", err=True)


def _accuracy(spec: WeightsSpec) -> str:
    """Return the first of the claimed metrics, such as "76.13 % top1"."""
    name, value = next(iter(spec.accuracy.items()), ("", 0.0))
    return f"{100 * value:.2f} % {name}" if name else "not measured"
