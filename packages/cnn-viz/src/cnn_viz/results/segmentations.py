"""What a network said of each image of a split, to be looked at again, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.tasks.boundaries import Boundaries
from cnn_core.tasks.curves import Calibration, Curves
from cnn_core.tasks.regions import image_scores
from cnn_core.tasks.segmentation import confusion_matrix
from cnn_core.training import SegmentationOutput

__all__ = ["Measured", "Segmentations", "spread"]

KEPT = 2**26  # logits that are kept in memory, 256 MiB; of larger splits none are


@dataclass(frozen=True)
class Measured:
    """The numbers of a split, from one look at it.

    `scores` are those of each image that has pixels that count: "index", what `image_scores`
    gives, and "boundary_f1", a mean over the classes but 0 that it has. `pixels` is classes x
    classes, targets down; `curves` and `calibration` are the sums of the metrics of these names.
    """

    scores: list[dict[str, float]]
    pixels: Tensor
    curves: Tensor
    calibration: Tensor


class Segmentations:
    """What a network said of each image of a split, by `make`, anew at each iteration.

    Only the images of a small split stay in memory.
    """

    def __init__(
        self, classes: Sequence[str], make: Callable[[], Iterable[SegmentationOutput]], length: int
    ) -> None:
        self.classes: tuple[str, ...] = tuple(classes)
        self.make = make
        self.length = length
        self._kept: list[SegmentationOutput] | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SegmentationOutput]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[SegmentationOutput] = []
        logits = 0
        for one in self.make():
            logits += one.logits.numel()
            if logits > KEPT:
                kept.clear()
            else:
                kept.append(one)
            yield one
        if logits <= KEPT:
            self._kept = kept

    def pick(self, indices: Iterable[int]) -> list[SegmentationOutput]:
        """Return the images at these places of the split, in this order."""
        wanted = list(indices)
        found = {one.index: one for one in self if one.index in wanted}
        return [found[index] for index in wanted]

    @property
    def scores(self) -> list[dict[str, float]]:
        """The numbers of each image that has pixels that count."""
        return self.measured.scores

    @cached_property
    def measured(self) -> Measured:
        """All numbers of the split."""
        count = len(self.classes)
        pixels, scores = torch.zeros(count, count, dtype=torch.int64), []
        curves, calibration, boundaries = Curves(count), Calibration(count), Boundaries(count)
        for one in self:
            predicted = one.predicted
            pixels += confusion_matrix(predicted, one.target, count)
            curves.update(one.logits[None], one.target[None])
            calibration.update(one.logits[None], one.target[None])
            if (one.target == IGNORED).all():
                continue
            line = {"index": float(one.index), **image_scores(predicted, one.target, count)}
            found = [s["boundary_f1"] for s in boundaries.scores(predicted, one.target)]
            if found:
                line["boundary_f1"] = sum(found) / len(found)
            scores.append(line)
        return Measured(scores, pixels, curves.sums, calibration.sums)


def spread(scores: Sequence[dict[str, float]], count: int) -> list[dict[str, float]]:
    """Return up to `count` images' numbers: the worst mIoU, the best, and even steps between."""
    ranked = sorted(scores, key=lambda line: line["miou"])
    count = min(count, len(ranked))
    if count < 2:
        return ranked[:count]
    return [ranked[round(step * (len(ranked) - 1) / (count - 1))] for step in range(count)]
