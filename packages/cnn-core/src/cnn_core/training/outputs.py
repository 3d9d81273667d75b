"""The outputs of a run's kept weights for every image of a split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cnn_core.data.batching import batches
from cnn_core.data.dataset import Files, Split
from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import center_crop, predicted_classes, two_class_logits
from cnn_core.training.evaluation import eval_batch_size, predictor
from cnn_core.training.trained import Source, Trained

__all__ = ["Predictions", "SegmentationOutput", "held_out", "predictions", "segmented"]


@dataclass(frozen=True)
class Predictions:
    """A network's outputs for every image of a split.

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


@dataclass(frozen=True)
class SegmentationOutput:
    """A network's output for one image of a split, at the network's size.

    `image` is C H W in [0, 1], `logits` classes x H x W, `target` uint8 H x W, where 255 is
    ignored; `index` is the image's place in the split. A network without padding crops its
    border: all three are then of the centre alone.
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


def predictions(
    run: Trained | Source,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictions:
    """Return the outputs of a run's kept weights for every image of a split.

    Raises:
        UsageError: the run does not classify.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    if (task := trained.dataset.spec.task) != "classification":
        raise UsageError(
            f"{trained.path}: does {task}, not classification", f"cnnzoo viz all {trained.path}"
        )
    return _predict(trained, trained.dataset.split(split))


def held_out(
    run: Trained | Source,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictions | None:
    """Return the outputs for the images that chose the kept weights; None where none did.

    They are the dataset's split "val", else the part of "train" that training held out.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    recipe = trained.run.recipe
    # The training's fraction and seed give the same images again. Not `divide`: its parts share
    # the tensors of the whole split, so `images` would not match the logits.
    _, part = trained.dataset.hold_out(recipe.validation, recipe.seed)
    return _predict(trained, part) if len(part) else None


def _predict(trained: Trained, part: Split | Files) -> Predictions:
    """Return the network's outputs for every image of a split."""
    model, weights = trained.model, trained.weights
    if isinstance(part, Files):
        from cnn_core.data.streaming import decode_to_memory

        # The images are returned as one tensor, so they need one size.
        part = decode_to_memory(part, weights.preprocessing.resize_to)
    size = eval_batch_size(weights.preprocessing)
    with torch.inference_mode():
        found = batches(part, weights.preprocessing, size, device=trained.device)
        logits = torch.cat([model(batch.images).float().cpu() for batch in found])
    return Predictions(part.images, logits, part.targets, weights.classes)


def segmented(
    run: Trained | Source,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Iterator[SegmentationOutput]:
    """Return the outputs of a run's kept weights for a split, one image after the other.

    Raises:
        UsageError: the run does not segment.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    if (task := trained.dataset.spec.task) != "segmentation":
        raise UsageError(f"{trained.path}: does {task}, not segmentation")
    return _segment(trained, trained.dataset.split(split))


@torch.inference_mode()
def _segment(trained: Trained, part: Split | Files) -> Iterator[SegmentationOutput]:
    """Yield the network's output for each image of a split."""
    preprocessing = trained.weights.preprocessing
    logits_of = predictor(trained.model, preprocessing)
    size = eval_batch_size(preprocessing)
    for batch in batches(part, preprocessing, size, device=trained.device):
        logits = two_class_logits(logits_of(batch.images).float())
        # Image and target as the network got them, and without the border that it crops, so that
        # all three have the same pixels.
        targets = center_crop(batch.targets, logits)
        images = center_crop(preprocessing.denormalise(batch.images), logits)
        rows = (images.cpu(), logits.cpu(), targets.cpu())
        for index, *row in zip(batch.indices.tolist(), *rows, strict=True):
            yield SegmentationOutput(index, *row)
