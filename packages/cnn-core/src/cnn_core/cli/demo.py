"""cnnzoo demo."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from cnn_core import registry

__all__ = ["command"]


@dataclass(frozen=True)
class Tour:
    """The demo of a task: what it trains, and the texts that it prints."""

    model: str
    data: str
    announced: str
    metric: str
    reached: str
    figures: str
    next: tuple[tuple[str, str], ...]


TOURS = {
    "classification": Tour(
        model="cnn-arch-lenet/lenet5",
        data="cnn-core/digits",
        announced="Training LeNet-5 (1998) on real handwritten digits",
        metric="test/top1",
        reached="of digits that it has never seen are classified correctly",
        figures="curves, confusion, predictions, Grad-CAM, filters, features",
        next=(
            ("cnnzoo show lenet5", "the network, stage by stage"),
            ("cnnzoo evaluate {run}", ""),
            ("cnnzoo train lenet5_modern --data digits", "its modern version"),
            ("cnnzoo list-models", ""),
        ),
    ),
    "segmentation": Tour(
        model="cnn-arch-unet/unet_same",
        data="cnn-core/digit_scenes",
        announced="Training a U-Net to find the pixels of digits on a textured background",
        metric="test/miou",
        reached="mean IoU of digit and background, in scenes that it has never seen",
        figures="masks, probabilities, scores, curves, Seg-Grad-CAM, features",
        next=(
            ("cnnzoo show unet", "the network as published, stage by stage"),
            ("cnnzoo evaluate {run}", "all metrics"),
            ("cnnzoo predict {run} PICTURE --out masks", "masks of your own images"),
            ("cnnzoo list-recipes", ""),
        ),
    ),
}


@click.command("demo")
@click.option(
    "--task",
    type=click.Choice(list(TOURS)),
    default="classification",
    show_default=True,
    help="The task to train a network for.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The run directory.")
@click.pass_context
def command(ctx: click.Context, task: str, out: Path | None) -> None:
    """Train a network on real digits, measure it, and draw figures of it.

    The 1998 LeNet-5 tells 1,797 digits apart: half a minute on two cores. A U-Net finds the
    pixels of digits in made-up scenes: a minute. No download.

    \b
    Examples:
      cnnzoo demo
      cnnzoo demo --task segmentation
    """
    from cnn_core.training.trainer import train

    tour = TOURS[task]
    click.echo(f"{tour.announced} …", err=True)
    run = train(tour.model, tour.data, out=out)
    reached = 100 * run.test_metrics()[tour.metric]
    reports = (entry for _, entry in registry.commands() if entry.qualified == "cnn-viz/report")
    if entry := next(reports, None):
        drawing = registry.resolve(entry)
        with contextlib.redirect_stdout(sys.stderr):
            ctx.invoke(drawing, run=run.path)
    else:
        click.echo("pip install cnn-viz draws figures and a report of it", err=True)
    click.echo(f"\n{reached:.2f} % {tour.reached}.\n")
    for path, what in (
        ("report.html", "everything on one page: open it in a browser"),
        ("weights.safetensors", "the trained weights"),
        ("metrics.jsonl", "loss and accuracy, epoch by epoch"),
        ("figures", tour.figures),
    ):
        if (run.path / path).exists():
            click.echo(f"  {run.path / path}\n      {what}")
    click.echo("\nNext:")
    for line, what in tour.next:
        click.echo(f"  {line.format(run=run.path):<44}  {what}".rstrip())
