"""Measure a network on a split: loss and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cnn_core.create import build
from cnn_core.data.batching import batches
from cnn_core.data.dataset import Files, Split
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks import loss_of
from cnn_core.tasks.classification import Loss
from cnn_core.tasks.tiles import overlap_tile
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.distributed import ALONE, World
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.trained import Source, Trained

__all__ = ["EvalSetup", "eval_batch_size", "eval_setup", "evaluate", "measure", "predictor"]

PIXELS = 1_000_000  # in a batch without gradients: fast, and small beside a training's memory


@dataclass(frozen=True, kw_only=True)
class EvalSetup:
    """Everything that measuring needs, except the network and the split."""

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
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Return loss and all metrics of a run's kept weights on a split.

    Raises:
        UsageError: there is no such run, split or device, or no weights yet.
        CorruptError: a file has changed since it was written; the message names it.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    setup = eval_setup(trained)
    # `measure` lays the network out as the recipe says; the shared one stays as others saw it.
    model = build(trained.weights).to(trained.device)
    return measure(model, trained.dataset.split(split), setup)


def eval_setup(trained: Trained) -> EvalSetup:
    """Return the setup to evaluate a run's kept weights, including `eval_only` metrics."""
    recipe, weights, spec = trained.run.recipe, trained.weights, trained.dataset.spec
    return EvalSetup(
        recipe=recipe,
        preprocessing=weights.preprocessing,
        criterion=loss_of(spec.task, recipe),
        metrics=EpochMetrics(spec.task, weights.num_classes, recipe.topk, evaluated=recipe.data),
        device=trained.device,
    )


@torch.inference_mode()
def measure(
    model: nn.Module,
    split: Split | Files,
    setup: EvalSetup,
    on_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return loss and metrics of a model over a split, in eval mode.

    Each process of the world measures its share; all of them return the whole split's numbers.
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
        # `batches` divides a batch among the processes.
        eval_batch_size(preprocessing) * world.size,
        device=setup.device,
        workers=setup.workers,
        rank=world.rank,
        world=world.size,
    ):
        with autocast(setup.device, recipe.precision):
            logits = logits_of(batch.images.contiguous(memory_format=memory_format))
        # In float32: logits in bf16 have two to three digits, too few for a loss.
        loss = setup.criterion(logits.float(), batch.targets).item()
        setup.metrics.add(loss, logits, batch.targets)
        on_batch()
    # Exchange sums, not means: processes may have different numbers of images.
    setup.metrics.load(setup.metrics.total(world, setup.device))
    return setup.metrics.compute()


def eval_batch_size(preprocessing: Preprocessing) -> int:
    """Return how many images a batch without gradients has."""
    # `overlap_tile` bounds the memory of tiles by itself; here the whole images count.
    height, width = preprocessing.image_size if preprocessing.tiled else preprocessing.size
    return max(PIXELS // (height * width), 1)


def predictor(model: nn.Module, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Return a function from whole images to logits: the model, or the model tile by tile."""
    if not preprocessing.tiled:
        return model
    return partial(overlap_tile, model, tile=preprocessing.size[0], margin=preprocessing.margin)
