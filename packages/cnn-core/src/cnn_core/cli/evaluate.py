"""cnnzoo evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.params import data_dir_option, device_option

__all__ = ["command"]


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="The split to evaluate on.")
@data_dir_option
@device_option
@json_option
def command(run: Path, split: str, data_dir: Path | None, device: str, as_json: bool) -> None:
    """Evaluate the saved weights of RUN on a split of its dataset.

    \b
    Examples:
      cnnzoo evaluate runs/lenet5-digits-20260101-120000
      cnnzoo evaluate runs/lenet5-digits-20260101-120000 --split train --json
    """
    from cnn_core.training import evaluate

    metrics = evaluate(run, split=split, data_dir=data_dir, device=device)
    values = {f"{split}/{name}": value for name, value in metrics.items()}
    if as_json:
        emit_json("metrics", values, run=str(run))
        return
    table(
        ("metric", "value"),
        [(name, f"{value:.6f}") for name, value in values.items()],
        right=("value",),
    )
