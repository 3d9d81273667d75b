"""cnnzoo probe."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnn_core.cli.features import left_out, stage_option
from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.params import DATASET, SOURCE, data_dir_option, device_option, source_options

if TYPE_CHECKING:
    from cnn_core.training.probing import ProbeResult

__all__ = ["command"]


@click.command("probe")
@click.argument("source", type=SOURCE)
@click.argument("dataset", type=DATASET)
@stage_option
@click.option(
    "--shots",
    type=click.IntRange(1),
    default=None,
    help="Use only this many training images of each class.",
)
@click.option("--seed", default=0, show_default=True, help="Chooses images for --shots.")
@data_dir_option
@source_options
@device_option
@json_option
def command(
    source: str,
    dataset: str,
    stage: str | None,
    shots: int | None,
    seed: int,
    data_dir: Path | None,
    model: str,
    naming: str | None,
    download: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure how well a network's features separate the classes of DATASET.

    The network is not trained. Two classifiers are fitted to its features of the training images:
    k nearest neighbours by cosine similarity, and a linear probe, which is logistic regression on
    standardised features. k and C are chosen on validation images. Prints their test accuracy with
    a 95 % interval (Wilson). See cnnzoo features for SOURCE and --stage. Unreadable files are left
    out; then the exit code is 3.

    \b
    Examples:
      cnnzoo probe resnet50 imagefolder:flowers
      cnnzoo probe resnet50:imagenet-v1 cifar10 --shots 10 --seed 1
    """
    from cnn_core.data.progress_bar import progress_bar
    from cnn_core.training.probing import probe
    from cnn_core.training.trained import Trained

    trained = Trained(source, model=model, naming=naming, download=download, device=device)
    with left_out() as on_error, progress_bar("computing features", True) as progress:
        result = probe(
            trained,
            dataset,
            stage=stage,
            shots=shots or 0,
            seed=seed,
            data_dir=data_dir,
            on_error=on_error,
            progress=progress,
        )
        _print(result, source, dataset, as_json)


def _print(result: ProbeResult, source: str, dataset: str, as_json: bool) -> None:
    if as_json:
        content = dataclasses.asdict(result)
        emit_json("probe", content, source=source, data=dataset)
        return
    table(
        ("method", "setting", "validation", "test top-1", "95 % interval"),
        [
            (
                score.method,
                score.setting,
                _percent(score.validation),
                _percent(score.accuracy),
                " to ".join(map(_percent, score.interval)),
            )
            for score in result.scores
        ],
        right=("validation", "test top-1", "95 % interval"),
    )
    click.echo()
    splits = (*result.counts,)
    table(
        ("class", *(f"{split} images" for split in splits)),
        [(name, *(result.counts[s][name] for s in splits)) for name in result.counts["test"]],
        right=tuple(f"{split} images" for split in splits),
    )


def _percent(fraction: float) -> str:
    return "none" if math.isnan(fraction) else f"{100 * fraction:.2f} %"
