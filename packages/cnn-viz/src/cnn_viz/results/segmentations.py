"""The outputs of a segmentation network on a split, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.palette import background_class, class_colours
from cnn_core.tasks.boundaries import Boundaries
from cnn_core.tasks.curves import Calibration, Curves
from cnn_core.tasks.regions import image_scores
from cnn_core.tasks.segmentation import confusion_matrix
from cnn_core.training import SegmentationOutput

__all__ = ["SegmentationResults", "SplitMetrics", "spread_by_miou"]

MAX_CACHED_LOGITS = 2**26  # 256 MiB: the outputs of a larger split are predicted again on each use


@dataclass(frozen=True)
class SplitMetrics:
    """The metrics of a split, computed in one pass.

    `scores` is one dictionary for each image, except images whose pixels are all ignored: "index",
    the keys of `image_scores`, and "boundary_f1", the mean over the foreground classes of the
    image. `pixels` is the confusion matrix of pixels, classes x classes, with targets as rows.
    `curves` and `calibration` are the sums that `Curves` and `Calibration` accumulate.
    """

    scores: list[dict[str, float]]
    pixels: Tensor
    curves: Tensor
    calibration: Tensor


class SegmentationResults:
    """An iterable of a network's outputs on a split; `predict` computes them.

    `colours` are the RGB colours of the classes, from 0 to 1, and `background` is the number of
    the class that is background, or None: of `spec_colours` and `declared`, as in `Weights`.

    The outputs of a small split are cached. Those of a large one would not fit in memory, so each
    iteration computes them again.
    """

    def __init__(
        self,
        classes: Sequence[str],
        predict: Callable[[], Iterable[SegmentationOutput]],
        length: int,
        *,
        spec_colours: Sequence[str] = (),
        declared: str = "",
    ) -> None:
        self.classes: tuple[str, ...] = tuple(classes)
        self.background: int | None = background_class(self.classes, declared)
        rgb = class_colours(self.classes, spec_colours, self.background)
        self.colours: list[tuple[float, float, float]] = [
            (r / 255, g / 255, b / 255) for r, g, b in rgb
        ]
        self.predict = predict
        self.length = length
        self._cache: list[SegmentationOutput] | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SegmentationOutput]:
        if self._cache is not None:
            yield from self._cache
            return
        cached: list[SegmentationOutput] = []
        logits = 0
        for output in self.predict():
            logits += output.logits.numel()
            if logits > MAX_CACHED_LOGITS:
                cached.clear()
            else:
                cached.append(output)
            yield output
        if logits <= MAX_CACHED_LOGITS:
            self._cache = cached

    def pick(self, indices: Iterable[int]) -> list[SegmentationOutput]:
        """Return the outputs for the images with these indices in the split, in this order."""
        wanted = list(indices)
        by_index = {output.index: output for output in self if output.index in wanted}
        return [by_index[index] for index in wanted]

    @property
    def scores(self) -> list[dict[str, float]]:
        """The scores of each image, except images whose pixels are all ignored."""
        return self.metrics.scores

    @cached_property
    def metrics(self) -> SplitMetrics:
        """The metrics of the split, computed at first use."""
        count = len(self.classes)
        pixels, scores = torch.zeros(count, count, dtype=torch.int64), []
        curves, calibration, boundaries = Curves(count), Calibration(count), Boundaries(count)
        boundaries.background = self.background
        # One pass for all metrics, because prediction is the expensive part.
        for output in self:
            predicted = output.predicted
            pixels += confusion_matrix(predicted, output.target, count)
            curves.update(output.logits[None], output.target[None])
            calibration.update(output.logits[None], output.target[None])
            if (output.target == IGNORED).all():
                continue
            found = image_scores(predicted, output.target, count, self.classes)
            row = {"index": float(output.index), **found}
            f1 = [s["boundary_f1"] for s in boundaries.scores(predicted, output.target)]
            if f1:
                row["boundary_f1"] = sum(f1) / len(f1)
            scores.append(row)
        return SplitMetrics(scores, pixels, curves.sums, calibration.sums)


def spread_by_miou(scores: Sequence[dict[str, float]], count: int) -> list[dict[str, float]]:
    """Return the scores of up to `count` images, evenly spaced from the worst mIoU to the best."""
    ranked = sorted(scores, key=lambda line: line["miou"])
    count = min(count, len(ranked))
    if count < 2:
        return ranked[:count]
    return [ranked[round(step * (len(ranked) - 1) / (count - 1))] for step in range(count)]
