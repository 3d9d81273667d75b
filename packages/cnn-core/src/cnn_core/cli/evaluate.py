"""cnnzoo evaluate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from cnn_core.tasks.intervals import wilson
from cnn_core.text import counted, printable

if TYPE_CHECKING:
    from cnn_core.training.trained import Trained

__all__ = ["command"]


@click.command("evaluate")
@click.argument("source", type=SOURCE)
@click.option(
    "--split",
    help="The split to evaluate on, or all. [default: test; all for other images in a folder "
    "without split folders]",
)
@data_option
@data_dir_option
@source_options
@device_option
@optimize_options
@json_option
def command(
    source: str,
    split: str | None,
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
    (with --model), or an exported .pt2 or .onnx file. Accuracies come with their 95 % interval
    (Wilson). For published weights on their own dataset, the claimed accuracy is beside them.

    \b
    Examples:
      cnnzoo evaluate runs/lenet5-digits-20260101-120000
      cnnzoo evaluate runs/lenet5-digits-20260101-120000 --split train --json
      cnnzoo evaluate lenet5:mnist --data mnist
      cnnzoo evaluate resnet50 --data imagefolder:holiday --optimize
      cnnzoo evaluate runs/mine --data imagefolder:new --split all
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
    found = _Found(trained, trained.default_split if split is None else split, metrics)
    if as_json:
        emit_json(
            "metrics",
            {f"{found.split}/{name}": value for name, value in metrics.items()},
            run=source,
            weights=trained.name,
            data=trained.recipe.data,
            split=found.split,
            images=found.images,
            intervals=found.intervals,
            claimed=found.claimed,
            scale_note=found.scale_note,
        )
    else:
        click.echo(printable(found.title), err=True)
        _print(found)
        if found.scale_note:
            click.echo(found.scale_note, err=True)
    require_finite(metrics, found.split, source)


@dataclass(frozen=True)
class _Found:
    """The metrics of a split, with their intervals and the claims for published weights."""

    trained: Trained
    split: str
    metrics: dict[str, float]

    @property
    def title(self) -> str:
        """What was measured on what."""
        trained = self.trained
        return f"{trained.name} on {trained.recipe.data}, split {self.split}: {self.counted}"

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.trained.split(self.split))

    @property
    def counted(self) -> str:
        """The number of images; for all splits together, also the number in each."""
        dataset = self.trained.dataset
        images = counted(self.images, "image")
        if self.split in dataset.splits or self.split != "all":
            return images
        parts = (f"{name} {len(part):,}" for name, part in dataset.splits.items())
        return f"{images} ({'no split folders' if dataset.divided else ', '.join(parts)})"

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of accuracies over images, by metric."""
        return {
            f"{self.split}/{name}": wilson(round(value * self.images), self.images)
            for name, value in self.metrics.items()
            if re.fullmatch(r"top\d+", name)
        }

    @property
    def scale_note(self) -> str:
        """In which pixels the distances of segmentation are, if images are resized; else ""."""
        trained = self.trained
        is_segmentation = trained.dataset.spec.task == "segmentation"
        return trained.weights.preprocessing.scale_note if is_segmentation else ""

    @property
    def claimed(self) -> dict[str, float]:
        """What the publisher of weights claims for the same images, by metric."""
        entry = None if self.trained.is_run else self.trained.opened.entry
        if entry is None or (self.trained.recipe.data, self.split) != (entry.spec.data, "test"):
            return {}
        return {f"test/{name}": value for name, value in entry.spec.accuracy.items()}


def _print(found: _Found) -> None:
    from cnn_core.training.progress import format_metric

    intervals, claimed = found.intervals, found.claimed
    columns = ["metric", "value"]
    columns += ["95 % interval"] * bool(intervals) + ["claimed"] * bool(claimed)
    rows = []
    for name, value in found.metrics.items():
        key = f"{found.split}/{name}"
        low, high = intervals.get(key, (None, None))
        between = "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f} %"
        claim = format_metric(name, claimed[key]) if key in claimed else ""
        rows.append((key, format_metric(name, value), between, claim)[: len(columns)])
    table(columns, rows, right=columns[1:])
