"""cnnzoo demo."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from cnn_core import registry

__all__ = ["command"]


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The run directory.")
@click.pass_context
def command(ctx: click.Context, out: Path | None) -> None:
    """Train the 1998 LeNet-5 on 1,797 real digits, measure it, and draw what it learned.

    No download; half a minute on two cores.

    \b
    Example:
      cnnzoo demo
    """
    from cnn_core.training.trainer import train

    click.echo("Training LeNet-5 (1998) on real handwritten digits …", err=True)
    run = train("lenet5", "digits", out=out)
    accuracy = 100 * run.test_metrics()["test/top1"]
    if "report" in registry.commands().names():
        drawing = registry.resolve(registry.commands().entry("report"))
        with contextlib.redirect_stdout(sys.stderr):
            ctx.invoke(drawing, run=run.path)
    else:
        click.echo("pip install cnn-viz draws figures and a report of it", err=True)
    click.echo(f"\n{accuracy:.2f} % of the digits that it has never seen are right.\n")
    for path, what in (
        ("report.html", "all of it on one page: open it in a browser"),
        ("weights.safetensors", "what it learned"),
        ("metrics.jsonl", "how it got there, epoch by epoch"),
        ("figures", "curves, confusion, predictions, Grad-CAM, filters, features"),
    ):
        if (run.path / path).exists():
            click.echo(f"  {run.path / path}\n      {what}")
    click.echo(f"""
Next:
  cnnzoo show lenet5                            the network, stage by stage
  cnnzoo evaluate {run.path}
  cnnzoo train lenet5_modern --data digits      what became of it
  cnnzoo list-models""")
