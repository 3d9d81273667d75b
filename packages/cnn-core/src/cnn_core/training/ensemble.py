"""The networks behind a predictor: from a batch of inputs to probabilities or features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core import registry
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import UsageError
from cnn_core.tasks import probabilities_of
from cnn_core.tasks.segmentation import two_class_logits
from cnn_core.tasks.thresholds import require_binary
from cnn_core.tasks.tiles import flip_tta, overlap_tile, tile_margin
from cnn_core.text import printable
from cnn_core.training.exported import ExportedNetwork
from cnn_core.training.numerics import blame_module
from cnn_core.training.stage_features import stage_features
from cnn_core.training.trained import Trained
from cnn_core.weights.native import Weights

__all__ = ["Network", "class_order", "task_of", "thresholds_for"]

SHOWN = 3  # class names in an error


def task_of(weights: Weights) -> str:
    """Return the task of weights: "classification", "segmentation" or "multilabel"."""
    return weights.task or registry.models().get(weights.model).task


def thresholds_for(weights: Weights, given: float | None) -> tuple[float, ...]:
    """Return the thresholds to predict with: `given`, of every class, else those of the weights.

    Raises:
        UsageError: `given` is not from 0 to 1, or there are more than two exclusive classes.
    """
    if given is None:
        return weights.thresholds
    if not 0 <= given <= 1:
        raise UsageError(f"threshold = {given:g}: expected a probability, from 0 to 1")
    if task_of(weights) == "multilabel":
        return (given,) * len(weights.classes)
    require_binary(f"{given:g}", len(weights.classes))
    return (given,)


class Network:
    """One network of a `Predictor`; `order` has the number here of each class of the predictor.

    With `optimized`, an optimised copy made with these options computes the logits.
    """

    def __init__(
        self, trained: Trained, order: Tensor | None, optimized: Mapping[str, Any] | None = None
    ) -> None:
        self.trained = trained
        self.order = order
        self.optimized = optimized
        self.preprocessing: Preprocessing = trained.weights.preprocessing
        self.in_channels: int = trained.weights.in_channels

    @cached_property
    def model(self) -> nn.Module:
        """The network that computes the logits."""
        if self.optimized is None:
            return self.trained.model
        return self.trained.optimized_model(**self.optimized)

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits, float32 N x classes, on the CPU."""
        logits: Tensor = self.model(inputs.to(self.trained.device))
        return logits.float().cpu()

    def probabilities(self, inputs: Tensor, flips: bool) -> Tensor:
        """Return probabilities, N x classes; with `flips`, the mean over the mirror image."""
        task = task_of(self.trained.weights)
        found = probabilities_of(task, self.logits(inputs))
        if flips:
            found = (found + probabilities_of(task, self.logits(inputs.flip(-1)))) / 2
        return found if self.order is None else found[:, self.order]

    @torch.inference_mode()
    def pixel_probabilities(self, inputs: Tensor, size: Sequence[int], flips: bool) -> Tensor:
        """Return probabilities, N classes H W, at the original size of the images."""
        inputs = inputs.to(self.trained.device)
        compute = self._whole_image_logits
        logits = flip_tta(compute, inputs) if flips else compute(inputs)
        logits = _resize_back(two_class_logits(logits.float()), size, self.preprocessing)
        found = logits.softmax(1).cpu()
        return found if self.order is None else found[:, self.order]

    @cached_property
    def _whole_image_logits(self) -> Callable[[Tensor], Tensor]:
        """A function that computes logits for whole images, even if the network crops them."""
        model, margin = self.model, self.preprocessing.margin
        height, width = self.preprocessing.size
        # A network without padding crops the border, so the image needs a reflected margin. Tiles
        # are square, so for other input shapes the logits cover only the centre.
        if not self.preprocessing.tiled and height == width:
            margin = tile_margin(model, height, self.in_channels, self.trained.device)
        if self.preprocessing.tiled or margin:
            return partial(overlap_tile, model, tile=height, margin=margin)
        return model

    @torch.inference_mode()
    def blame(self, inputs: Tensor) -> str:
        """Return the first module whose output for these inputs is not finite, or ""."""
        is_segmentation = task_of(self.trained.weights) == "segmentation"
        compute = self._whole_image_logits if is_segmentation else self.model
        return blame_module(self.model, partial(compute, inputs.to(self.trained.device)))

    def features(self, inputs: Tensor, stage: str | None) -> Tensor:
        """Return the outputs of a stage, or the inputs of the last one, as N x D on the CPU."""
        model = self.trained.model
        if isinstance(model, ExportedNetwork):
            raise UsageError(
                f"{self.trained.path}: an exported file has no stages",
                "use the run or the weights that it was exported from",
            )
        last = registry.get_spec(self.trained.weights.model).stages[-1]
        batches = [inputs.to(self.trained.device)]
        (found,) = stage_features(model, stage or last, batches, use_outputs=stage is not None)
        return found


def class_order(first: Trained, other: Trained) -> Tensor | None:
    """Return the numbers of the first network's classes in another; None if they are equal.

    Raises:
        UsageError: the tasks or the names of the classes differ, or equal names are ambiguous.
    """
    tasks = task_of(first.weights), task_of(other.weights)
    if tasks[0] != tasks[1]:
        raise UsageError(f"{first.path} does {tasks[0]}, but {other.path} does {tasks[1]}")
    ours, theirs = first.weights.classes, other.weights.classes
    if ours == theirs:
        return None
    if missing := [name for name in ours if name not in theirs]:
        raise UsageError(f"{other.path} lacks classes of {first.path}: {_listed(missing)}")
    if extra := [name for name in theirs if name not in ours]:
        raise UsageError(f"{other.path} has classes that {first.path} lacks: {_listed(extra)}")
    if repeated := [name for name in ours if theirs.count(name) != 1 or ours.count(name) != 1]:
        raise UsageError(
            f"{first.path} and {other.path} have several classes of one name in different "
            f"orders: {_listed([*dict.fromkeys(repeated)])}"
        )
    return torch.tensor([theirs.index(name) for name in ours])


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(f"'{printable(name)}'" for name in names[:SHOWN])
    return f"{listed} and {len(names) - SHOWN:,} more" if len(names) > SHOWN else listed


def _resize_back(logits: Tensor, size: Sequence[int], preprocessing: Preprocessing) -> Tensor:
    """Return the logits, N classes h w, resized to (height, width), with padding removed."""
    height, width = preprocessing.resize_to
    if not preprocessing.tiled and logits.shape[-2:] != (height, width):
        top, left = (logits.shape[-2] - height) // 2, (logits.shape[-1] - width) // 2
        logits = logits[..., top : top + height, left : left + width]
    if logits.shape[-2:] == tuple(size):
        return logits
    # Logits are scaled, not classes: the mean of two class numbers is another class.
    return F.interpolate(logits, tuple(size), mode="bilinear", antialias=True)
