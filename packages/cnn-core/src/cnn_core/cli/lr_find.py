"""cnnzoo lr-find."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from cnn_core.cli.find import finder
from cnn_core.cli.output import emit_json, json_option

if TYPE_CHECKING:
    from cnn_core.training.finders import LrTrial
    from cnn_core.training.setup import Setup

__all__ = ["command"]

ROWS, WIDTH = 24, 46


@click.command("lr-find")
@finder
@click.option("--low", default=1e-5, show_default=True, help="The first learning rate.")
@click.option("--high", default=10.0, show_default=True, help="The last learning rate.")
@click.option(
    "--steps", default=100, show_default=True, help="Number of steps from --low to --high."
)
@json_option
def command(setup: Setup, low: float, high: float, steps: int, as_json: bool) -> None:
    """Train MODEL with a growing learning rate, and plot the loss.

    This is the range test of Smith (2017): the learning rate grows with every step until the loss
    diverges. The suggestion is a tenth of the learning rate with the lowest loss. No weights are
    saved.

    \b
    Examples:
      cnnzoo lr-find lenet5_modern --data digits
      cnnzoo lr-find resnet20_cifar --data cifar10 --set optimizer=adamw --high 1 --json
    """
    from cnn_core.training.finders import lr_curve, suggested_lr

    curve = list(lr_curve(setup, low=low, high=high, steps=steps))
    best = suggested_lr(curve)
    if as_json:
        emit_json("curve", [dataclasses.asdict(trial) for trial in curve], suggestion=best)
        return
    for line in _bar_chart(curve, best):
        click.echo(line)
    lowest = min(curve, key=lambda trial: trial.smooth)
    said = f"the loss is lowest at {lowest.lr:.2g}"
    click.echo(f"\n{said}; suggested, a tenth of it: --lr {best:.2g}")
    if lowest is curve[-1]:
        click.echo(f"the loss still falls at the last rate, so try --high {10 * high:g}")


def _bar_chart(curve: list[LrTrial], best: float) -> list[str]:
    """Return the curve as lines of text, one bar per learning rate; clip very high losses."""
    sampled = curve[:: max(len(curve) // ROWS, 1)]
    nearest = min(sampled, key=lambda trial: abs(trial.lr - best))
    low = min(trial.smooth for trial in sampled)
    high = min(max(trial.smooth for trial in sampled), 2 * curve[0].smooth)
    lines = [f"{'lr':>8}  {'loss':>8}"]
    for trial in sampled:
        fraction = (min(trial.smooth, high) - low) / max(high - low, 1e-12)
        mark = "  <- suggested" if trial is nearest else ""
        bar = "█" * (1 + round(fraction * WIDTH))
        lines.append(f"{trial.lr:8.1e}  {trial.smooth:8.4f}  {bar}{mark}")
    return lines
