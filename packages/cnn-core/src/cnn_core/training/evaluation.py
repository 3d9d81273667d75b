"""Compute the loss and metrics of a network on a split."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.data.batching import batches
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Files, Split
from cnn_core.errors import NumericalError, UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks import loss_of
from cnn_core.tasks.classification import Loss
from cnn_core.tasks.tiles import overlap_tile
from cnn_core.text import counted
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.distributed import ALONE, World
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.numerics import blame_module
from cnn_core.training.trained import Source, Trained
from cnn_core.weights.native import Weights

__all__ = [
    "EvalSetup",
    "eval_batch_size",
    "eval_setup",
    "evaluate",
    "evaluate_split",
    "metrics_for",
    "predictor",
    "require_finite",
    "require_optimize",
]

log: logging.Logger = logging.getLogger("cnn_core")
BATCH_PIXELS = 1_000_000  # large enough to be fast; needs little memory compared with training


@dataclass(frozen=True, kw_only=True)
class EvalSetup:
    """Everything that evaluation needs besides a network and a split."""

    recipe: Recipe
    preprocessing: Preprocessing
    criterion: Loss
    metrics: EpochMetrics
    device: torch.device
    world: World = ALONE
    workers: int = 0


def evaluate(
    run: Trained | Source,
    *,
    split: str | None = None,
    data: Any = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    optimize: bool = False,
    precision: str = "fp32",
    compile: bool = False,
) -> dict[str, float]:
    """Evaluate a trained network on a split; return the loss and all metrics by name.

    Without a split "val" in the dataset, "val" means the images that a run held out of "train";
    "all" means all images. The default is "all" for a folder without split folders in `data`,
    since none of its images was trained on, else "test".

    If outputs are not finite, only their number is returned, as "not_finite". `data` is a dataset
    other than the one that the network was trained on, or that one if it was given as an object.
    Its classes are matched by name, and it may lack some of them. With `optimize`, a faster copy
    of the network computes the outputs, equal to 1e-4; `precision` ("fp32" or "bf16") and
    `compile` are options of it.

    Raises:
        UsageError: the run, split or device does not exist, the run has no weights yet, or an
            option does not apply.
        CorruptError: a file has changed since it was written. The message names it.
    """
    require_optimize(optimize, precision, compile)
    trained = Trained.of(run, data=data, data_dir=data_dir, device=device)
    found = trained.split(trained.default_split if split is None else split)
    setup = eval_setup(trained)
    if optimize:
        model: nn.Module = trained.optimized_model(precision=precision, compile=compile)
    else:
        # `evaluate_split` changes the memory format in place: do not pass it the shared network.
        model = trained.new_model()
    return evaluate_split(model, found, setup)


def require_optimize(optimize: bool, precision: str, compile: bool) -> None:
    """Raise UsageError if an option of optimised networks is used for another network."""
    used = {f"precision = '{precision}'": precision != "fp32", "compile": compile}
    for option, is_used in used.items():
        if is_used and not optimize:
            raise UsageError(f"{option} applies to optimised networks", "add --optimize")


def eval_setup(trained: Trained) -> EvalSetup:
    """Return the setup that evaluates a run's saved weights, including the slow metrics."""
    recipe, weights, spec = trained.recipe, trained.weights, trained.dataset.spec
    return EvalSetup(
        recipe=recipe,
        preprocessing=weights.preprocessing,
        criterion=loss_of(spec.task, recipe),
        metrics=metrics_for(weights, spec.task, recipe),
        device=trained.device,
    )


def metrics_for(weights: Weights, task: str, recipe: Recipe) -> EpochMetrics:
    """Return the metrics that evaluate trained weights, including the slow ones."""
    return EpochMetrics(
        task,
        weights.num_classes,
        recipe.topk,
        evaluated=recipe.data,
        classes=weights.classes,
        thresholds=weights.thresholds,
        background=weights.background,
    )


@torch.inference_mode()
def evaluate_split(
    model: nn.Module,
    split: Split | Files,
    setup: EvalSetup,
    on_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Evaluate a model on a split, in eval mode; return the loss and metrics by name.

    If outputs are not finite, warn, name the first module with such an output, and return only
    the number of these images, as "not_finite".

    Each process evaluates its shard, and every process returns the results of the whole split.
    `on_batch` is called after every batch.
    """
    recipe, preprocessing, world = setup.recipe, setup.preprocessing, setup.world
    memory_format = FORMATS[recipe.memory_format]
    model.eval().to(memory_format=memory_format)
    logits_of = predictor(model, preprocessing)
    setup.metrics.load({})
    for batch in batches(
        split,
        preprocessing,
        # `batches` divides each batch among the processes.
        eval_batch_size(preprocessing) * world.size,
        device=setup.device,
        workers=setup.workers,
        rank=world.rank,
        world=world.size,
    ):
        with autocast(setup.device, recipe.precision):
            logits = logits_of(batch.images.contiguous(memory_format=memory_format))
        # Compute the loss in float32: bf16 has only two to three significant digits.
        loss = setup.criterion(logits.float(), batch.targets).item()
        known = setup.metrics.not_finite
        setup.metrics.add(loss, logits, batch.targets)
        if setup.metrics.not_finite and not known:
            _warn_of_module(model, partial(logits_of, batch.images))
        on_batch()
    # Add up sums, not means, because shards may differ in size.
    setup.metrics.load(setup.metrics.total(world, setup.device))
    return setup.metrics.compute()


def require_finite(results: Mapping[str, float], split: str, source: str) -> None:
    """Raise NumericalError, for the exit code, if `evaluate_split` found outputs not finite."""
    if count := results.get("not_finite"):
        raise NumericalError(
            f"{source}: the outputs for {counted(int(count), 'image')} of the split '{split}' are "
            "not finite, "
            "so it has no metrics"
        )


def _warn_of_module(model: nn.Module, forward: Callable[[], object]) -> None:
    name = blame_module(model, forward)
    where = f", first in the output of {name}" if name else ""
    log.warning("outputs of the network are not finite%s; they count as no prediction", where)


def eval_batch_size(preprocessing: Preprocessing) -> int:
    """Return the number of images per batch for evaluation, at least 1."""
    # With tiles this limits whole images; `overlap_tile` limits the memory for the tiles.
    height, width = preprocessing.image_size if preprocessing.tiled else preprocessing.size
    return max(BATCH_PIXELS // (height * width), 1)


def predictor(model: nn.Module, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits of whole images, tile by tile if required."""
    if not preprocessing.tiled:
        return model
    return partial(overlap_tile, model, tile=preprocessing.size[0], margin=preprocessing.margin)
