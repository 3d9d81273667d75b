"""Compute the outputs of a run's saved weights for every image of a split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cnn_core.data.batching import batches
from cnn_core.data.splits import Files, Split
from cnn_core.errors import NumericalError, UsageError
from cnn_core.tasks.multilabel import predicted_labels
from cnn_core.tasks.segmentation import center_crop, predicted_classes, two_class_logits
from cnn_core.training.evaluation import eval_batch_size, predictor
from cnn_core.training.numerics import all_finite, blame_module
from cnn_core.training.trained import Source, Trained

__all__ = [
    "LabelPredictions",
    "Predictions",
    "SegmentationOutput",
    "label_predictions",
    "predictions",
    "segmented",
    "validation_predictions",
]


@dataclass(frozen=True)
class Predictions:
    """A network's outputs for every image of a split.

    `images` are uint8, N C h w: of a split in memory the original ones, of files the resized ones.
    If the preprocessing crops images, they are the part that the network sees. Do not preprocess
    them again. `logits` have shape N x classes, `targets` and `predicted` have shape N.
    """

    images: Tensor
    logits: Tensor
    targets: Tensor
    classes: tuple[str, ...]

    @property
    def predicted(self) -> Tensor:
        """The index of the class with the highest logit, N."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, N x classes."""
        return self.logits.softmax(1)


@dataclass(frozen=True)
class LabelPredictions:
    """A multilabel network's outputs for every image of a split.

    `images` are as in `Predictions`. `logits` and `targets`, 0 or 1, have shape N x classes;
    `thresholds` has one for each class.
    """

    images: Tensor
    logits: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]

    @property
    def predicted(self) -> Tensor:
        """Whether an image is predicted to be of a class, bool N x classes."""
        return predicted_labels(self.logits, self.thresholds)

    @property
    def probabilities(self) -> Tensor:
        """Sigmoid of the logits, N x classes."""
        return self.logits.sigmoid()


@dataclass(frozen=True)
class SegmentationOutput:
    """A network's output for one image of a split, at the resolution of the output.

    `image` is C H W in [0, 1], `logits` are classes x H x W, and `target` is uint8 H x W, where
    255 means ignored. `index` is the image's position in the split. If the network has no padding
    and crops the border, all three show only the centre.
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
        """The index of the class with the highest logit, H x W."""
        return predicted_classes(self.logits[None])[0]


def predictions(
    run: Trained | Source,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictions:
    """Return the outputs of a run's saved weights for every image of a split.

    Raises:
        UsageError: the run's task is not classification.
        NumericalError: outputs are not finite.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    if (task := trained.dataset.spec.task) != "classification":
        raise UsageError(
            f"{trained.path}: a {task} run, expected classification",
            f"cnnzoo viz all {trained.path}",
        )
    return _predict(trained, trained.split(split))


def label_predictions(
    run: Trained | Source,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> LabelPredictions:
    """Return the outputs of a multilabel run's saved weights for every image of a split.

    Raises:
        UsageError: the run's task is not multilabel.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    if (task := trained.dataset.spec.task) != "multilabel":
        raise UsageError(f"{trained.path}: a {task} run, expected multilabel")
    found, weights = _predict(trained, trained.dataset.split(split)), trained.weights
    thresholds = weights.thresholds or (0.5,) * len(weights.classes)
    return LabelPredictions(found.images, found.logits, found.targets, weights.classes, thresholds)


def validation_predictions(
    run: Trained | Source,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictions | None:
    """Return the outputs for the validation images, or None if there are none.

    These are the dataset's "val" split if it has one, else, for a run, the held-out fraction of
    "train", if there is any. Other weights may have been trained on any image of "train".
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    dataset, recipe = trained.dataset, trained.recipe
    if "val" not in dataset.splits and not (trained.is_run and "train" in dataset.splits):
        return None
    # The same images as in training. Do not use `divide`: its
    # parts share the tensors of the whole split, so `images` would not match the logits.
    _, validation = dataset.hold_out(*recipe.part())
    return _predict(trained, validation) if len(validation) else None


def _predict(trained: Trained, split: Split | Files) -> Predictions:
    """Return the network's outputs for every image of a split."""
    model, weights, preprocessing = trained.model, trained.weights, trained.weights.preprocessing
    if isinstance(split, Files):
        from cnn_core.data.streaming import decode_to_memory

        # The images are returned as one tensor, so they need one size.
        center = preprocessing.center_cropped if preprocessing.crops else None
        split = decode_to_memory(split, preprocessing.resize_to, center=center)
        preprocessing = preprocessing.after_cropping
    size = eval_batch_size(preprocessing)
    with torch.inference_mode():
        loader = batches(split, preprocessing, size, device=trained.device)
        logits = torch.cat(
            [_finite(trained, model, batch.images).float().cpu() for batch in loader]
        )
    return Predictions(preprocessing.visible(split.images), logits, split.targets, weights.classes)


def segmented(
    run: Trained | Source,
    *,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Iterator[SegmentationOutput]:
    """Return an iterator over the outputs of a run's saved weights, one image at a time.

    Raises:
        UsageError: the run's task is not segmentation.
        NumericalError: on iteration, if outputs are not finite.
    """
    trained = Trained.of(run, data_dir=data_dir, device=device)
    if (task := trained.dataset.spec.task) != "segmentation":
        raise UsageError(f"{trained.path}: a {task} run, expected segmentation")
    return _segment(trained, trained.split(split))


def _finite(trained: Trained, logits_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits of images.

    Raises:
        NumericalError: they are not finite; names the first module with such an output.
    """
    logits = logits_of(images)
    if all_finite(logits):
        return logits
    name = blame_module(trained.model, partial(logits_of, images))
    where = f", first in the output of {name}" if name else ""
    raise NumericalError(f"{trained.path}: outputs of the network are not finite{where}")


@torch.inference_mode()
def _segment(trained: Trained, split: Split | Files) -> Iterator[SegmentationOutput]:
    """Yield the network's output for each image of a split."""
    preprocessing = trained.weights.preprocessing
    logits_of = predictor(trained.model, preprocessing)
    size = eval_batch_size(preprocessing)
    for batch in batches(split, preprocessing, size, device=trained.device):
        logits = two_class_logits(_finite(trained, logits_of, batch.images).float())
        # Crop targets and images to the logits' size, so that all three cover the same pixels.
        targets = center_crop(batch.targets, logits)
        images = center_crop(preprocessing.denormalise(batch.images), logits)
        rows = (images.cpu(), logits.cpu(), targets.cpu())
        for index, *row in zip(batch.indices.tolist(), *rows, strict=True):
            yield SegmentationOutput(index, *row)
