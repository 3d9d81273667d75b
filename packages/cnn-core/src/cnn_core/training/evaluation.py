"""Measure weights on a split, and keep what they said of each image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cnn_core.create import build
from cnn_core.data.batching import batches
from cnn_core.data.dataset import Dataset, Files, Split, load_dataset
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import RunError, UsageError
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.tasks import loss_of
from cnn_core.tasks.segmentation import center_crop, predicted_classes, two_class_logits
from cnn_core.tasks.tiles import overlap_tile
from cnn_core.training.device import FORMATS, autocast, choose_device
from cnn_core.training.distributed import ALONE, World
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.weights.native import Weights, read_weights

__all__ = [
    "Predictions",
    "SegmentationOutput",
    "evaluate",
    "held_out",
    "load_data",
    "measure",
    "predictions",
    "predictor",
    "segmented",
]

PIXELS = 1_000_000  # of images that are looked at together


@dataclass(frozen=True)
class Predictions:
    """What a network said of every image of a split.

    `images` are the uint8 originals, N C h w; `logits` N x classes; `targets` N.
    """

    images: Tensor
    logits: Tensor
    targets: Tensor
    classes: tuple[str, ...]

    @property
    def predicted(self) -> Tensor:
        """The class with the highest logit, N."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, N x classes."""
        return self.logits.softmax(1)


@torch.inference_mode()
def measure(
    model: nn.Module,
    split: Split | Files,
    preprocessing: Preprocessing,
    recipe: Recipe,
    task: str,
    num_classes: int,
    device: torch.device,
    workers: int = 0,
    world: World = ALONE,
    on_batch: Callable[[], object] = lambda: None,
    eval_only: bool = False,
) -> dict[str, float]:
    """Return loss and metrics of a model over a split, in eval mode.

    Each process of the world looks at its share; all of them return the whole split's numbers.
    `on_batch` is called after every batch. Metrics that are `eval_only` are for evaluations.
    """
    memory_format = FORMATS[recipe.memory_format]
    model.eval().to(memory_format=memory_format)
    outputs = predictor(model, preprocessing)
    epoch_metrics = EpochMetrics(task, num_classes, recipe.topk, recipe.data if eval_only else "")
    criterion, size = loss_of(task, recipe), eval_batch_size(preprocessing) * world.size
    for batch in batches(
        split,
        preprocessing,
        size,
        device=device,
        workers=workers,
        rank=world.rank,
        world=world.size,
    ):
        with autocast(device, recipe.precision):
            logits = outputs(batch.images.contiguous(memory_format=memory_format))
        loss = criterion(logits.float(), batch.targets).item()
        epoch_metrics.add(loss, logits, batch.targets)
        on_batch()
    epoch_metrics.reduce(world, device)
    return epoch_metrics.compute()


def eval_batch_size(preprocessing: Preprocessing) -> int:
    """Return how many images are looked at at once, without gradients."""
    height, width = preprocessing.image_size if preprocessing.tiled else preprocessing.size
    return max(PIXELS // (height * width), 1)


def predictor(model: nn.Module, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Return what gives the logits of whole images: the model, or what it says tile by tile."""
    if not preprocessing.tiled:
        return model
    return partial(overlap_tile, model, tile=preprocessing.size[0], margin=preprocessing.margin)


@dataclass(frozen=True)
class SegmentationOutput:
    """What a network said of one image of a split, at the network's size.

    `image` is C H W in [0, 1], `logits` classes x H x W, `target` uint8 H x W, in which 255
    counts in nothing; `index` is the image's place. Of a network without padding: its centre.
    """

    index: int
    image: Tensor
    logits: Tensor
    target: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, classes x H x W."""
        return self.logits.softmax(0)

    @property
    def predicted(self) -> Tensor:
        """The class with the highest logit, H x W."""
        return predicted_classes(self.logits[None])[0]


@torch.inference_mode()
def segmented(
    run: Run,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Iterator[SegmentationOutput]:
    """Yield what a run's kept weights say of each image of a split, one after the other.

    Raises:
        UsageError: the run does not segment.
    """
    weights = read_weights(run.path)
    data = load_data(run, data_dir)
    if data.spec.task != "segmentation":
        raise UsageError(f"{run.path}: does {data.spec.task}, not segmentation")
    where, preprocessing = choose_device(device), weights.preprocessing
    outputs = predictor(build(weights).to(where), preprocessing)
    for batch in batches(
        data.split(split), preprocessing, eval_batch_size(preprocessing), device=where
    ):
        logits = two_class_logits(outputs(batch.images).float())
        targets = center_crop(batch.targets, logits)
        pictures = center_crop(preprocessing.denormalise(batch.images), logits)
        rows = (pictures.cpu(), logits.cpu(), targets.cpu())
        for index, *row in zip(batch.indices.tolist(), *rows, strict=True):
            yield SegmentationOutput(index, *row)


def evaluate(
    run: Run | str | os.PathLike[str],
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Return loss and all metrics of a run's kept weights on a split."""
    run = run if isinstance(run, Run) else open_run(run)
    weights = read_weights(run.path)
    data = load_data(run, data_dir)
    where = choose_device(device)
    return measure(
        build(weights).to(where),
        data.split(split),
        weights.preprocessing,
        run.recipe,
        data.spec.task,
        weights.num_classes,
        where,
        eval_only=True,
    )


@torch.inference_mode()
def predictions(
    run: Run,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictions:
    """Return what a run's kept weights say of every image of a split."""
    weights = read_weights(run.path)
    data = load_data(run, data_dir)
    if data.spec.task != "classification":
        raise UsageError(
            f"{run.path}: does {data.spec.task}, not classification", f"cnnzoo viz all {run.path}"
        )
    return _predict(data.split(split), weights, device)


@torch.inference_mode()
def held_out(
    run: Run,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictions | None:
    """Return what a run's kept weights say of the images that chose them; None where none did.

    They are the dataset's split "val", else the part of "train" that training held out.
    """
    weights, data = read_weights(run.path), load_data(run, data_dir)
    _, part = data.hold_out(run.recipe.validation, run.recipe.seed)
    return _predict(part, weights, device) if len(part) else None


def _predict(part: Split | Files, weights: Weights, device: str) -> Predictions:
    """Return what weights say of every image of a split."""
    if isinstance(part, Files):
        from cnn_core.data.streaming import decode_to_memory

        part = decode_to_memory(part, weights.preprocessing.target)
    where = choose_device(device)
    model = build(weights).to(where)
    logits = [
        model(batch.images).float().cpu()
        for batch in batches(
            part, weights.preprocessing, eval_batch_size(weights.preprocessing), device=where
        )
    ]
    return Predictions(part.images, torch.cat(logits), part.targets, weights.classes)


def load_data(run: Run, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a run's dataset from `data_dir`, else from where the run found it.

    A folder of one's own, as "imagefolder:PATH", is looked for in `data_dir` as well.

    Raises:
        RunError: it has other classes, counts or files than when the run began.
    """
    recorded = run.environment()
    name, of_ones_own, path = run.recipe.data.partition(":")
    if of_ones_own:
        name = f"{name}:{data_dir or (recorded.get('data') or '').partition(':')[2] or path}"
    elif data_dir is None and (folder := recorded.get("data_dir")) is not None:
        data_dir = Path(folder)
    dataset = load_dataset(name, data_dir=data_dir)
    if recorded.get("data_fingerprint", dataset.fingerprint()) != dataset.fingerprint():
        raise RunError(
            f"{run.path}: dataset '{name}' has other classes or files than when the run began",
            "put back what was there, or train again",
        )
    if allowed := run.recipe.bad_samples():
        splits = {name: _sound(split, allowed) for name, split in dataset.splits.items()}
        return Dataset(dataset.spec, splits)
    return dataset


def _sound(split: Split | Files, allowed: int) -> Split | Files:
    """Return a split without the files that the run left out."""
    if not isinstance(split, Files):
        return split
    from cnn_core.data.streaming import BadSamples, drop_bad_files

    return drop_bad_files(split, torch.get_num_threads(), BadSamples(allowed))
