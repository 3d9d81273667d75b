"""cnnzoo evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.params import (
    SOURCE,
    data_dir_option,
    data_option,
    device_option,
    optimize_options,
    source_options,
)

__all__ = ["command"]


@click.command("evaluate")
@click.argument("source", type=SOURCE)
@click.option("--split", default="test", show_default=True, help="The split to evaluate on.")
@data_option
@data_dir_option
@source_options
@device_option
@optimize_options
@json_option
def command(
    source: str,
    split: str,
    data: str | None,
    data_dir: Path | None,
    model: str,
    naming: str | None,
    download: bool,
    device: str,
    optimize: bool,
    precision: str,
    compile: bool,
    as_json: bool,
) -> None:
    """Evaluate a trained network on a split of a dataset.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), a weights file
    (with --model), or an exported .pt2 or .onnx file.

    \b
    Examples:
      cnnzoo evaluate runs/lenet5-digits-20260101-120000
      cnnzoo evaluate runs/lenet5-digits-20260101-120000 --split train --json
      cnnzoo evaluate lenet5:mnist --data mnist
      cnnzoo evaluate resnet50 --data imagefolder:holiday --optimize
    """
    from cnn_core.training import evaluate
    from cnn_core.training.evaluation import require_finite
    from cnn_core.training.trained import Trained

    trained = Trained(
        source,
        model=model,
        naming=naming,
        download=download,
        data=data,
        data_dir=data_dir,
        device=device,
    )
    metrics = evaluate(
        trained, split=split, optimize=optimize, precision=precision, compile=compile
    )
    values = {f"{split}/{name}": value for name, value in metrics.items()}
    if as_json:
        emit_json("metrics", values, run=source)
    else:
        rows = [(name, f"{value:.6f}") for name, value in values.items()]
        table(("metric", "value"), rows, right=("value",))
        if (
            trained.dataset.spec.task == "segmentation"
            and trained.weights.preprocessing.scale_note
        ):
            click.echo(trained.weights.preprocessing.scale_note, err=True)
    require_finite(metrics, split, source)
