"""cnnzoo demo."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from cnn_core import registry
from cnn_core.cli.params import PATH

__all__ = ["command"]


@dataclass(frozen=True)
class Tour:
    """The demo of one task: the model, the dataset and the texts to print."""

    model: str
    data: str
    announcement: str
    metric: str
    metric_text: str
    figures: str
    next_steps: tuple[tuple[str, str], ...]


TOURS = {
    "classification": Tour(
        model="cnn-arch-lenet/lenet5",
        data="cnn-core/digits",
        announcement="Training LeNet-5 (1998) on real handwritten digits",
        metric="test/top1",
        metric_text="of unseen digits are classified correctly",
        figures="curves, confusion, predictions, Grad-CAM, filters, features",
        next_steps=(
            ("cnnzoo show lenet5", "the network, stage by stage"),
            ("cnnzoo evaluate {run}", ""),
            ("cnnzoo train lenet5_modern --data digits", "its modern version"),
            ("cnnzoo list-models", ""),
        ),
    ),
    "segmentation": Tour(
        model="cnn-arch-unet/unet_same",
        data="cnn-core/digit_scenes",
        announcement="Training a U-Net to find the pixels of digits on a textured background",
        metric="test/miou",
        metric_text="mean IoU of digit and background, in unseen scenes",
        figures="masks, probabilities, scores, curves, Seg-Grad-CAM, features",
        next_steps=(
            ("cnnzoo show unet", "the network as published, stage by stage"),
            ("cnnzoo evaluate {run}", "all metrics"),
            ("cnnzoo predict {run} IMAGE --out masks", "masks of your own images"),
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
@click.option("--out", type=PATH, metavar="DIR", help="The run directory.")
@click.pass_context
def command(ctx: click.Context, task: str, out: Path | None) -> None:
    """Train a network on real digits, evaluate it, and draw figures.

    LeNet-5 (1998) classifies 1,797 digits, in half a minute on two cores. A U-Net segments digits
    in generated scenes, in a minute. Nothing is downloaded.

    \b
    Examples:
      cnnzoo demo
      cnnzoo demo --task segmentation
    """
    from cnn_core.training.trainer import train

    tour = TOURS[task]
    click.echo(f"{tour.announcement} …", err=True)
    run = train(tour.model, tour.data, out=out)
    reached = 100 * run.test_metrics()[tour.metric]
    reports = (entry for _, entry in registry.commands() if entry.qualified == "cnn-viz/report")
    if entry := next(reports, None):
        report = registry.resolve(entry)
        with contextlib.redirect_stdout(sys.stderr):
            ctx.invoke(report, source=str(run.path))
    else:
        click.echo("to get figures and a report: pip install cnn-viz", err=True)
    click.echo(f"\n{reached:.2f} % {tour.metric_text}.\n")
    for path, description in (
        ("report.html", "everything on one page: open it in a browser"),
        ("weights.safetensors", "the trained weights"),
        ("metrics.jsonl", "loss and accuracy, epoch by epoch"),
        ("figures", tour.figures),
    ):
        if (run.path / path).exists():
            click.echo(f"  {run.path / path}\n      {description}")
    click.echo("\nNext:")
    for line, comment in tour.next_steps:
        click.echo(f"  {line.format(run=run.path):<44}  {comment}".rstrip())
