"""Segmentation: the errors of the ISBI 2012 challenge, for cells in electron microscopy.

Class 1 is cell, class 0 membrane. Everything beyond the image is membrane, and ignored pixels are
membrane in both masks. Cells are 4-connected and membranes 8-connected, so a diagonal line
separates two cells. Predictions are thresholded at 0.5; the challenge used the best threshold and
thinned membranes, so its errors are often lower.

A pixel error hardly notices a gap of one pixel in a membrane, though it merges two cells. The
Rand and warping errors measure that: wrong pairs of pixels, and wrong topology.

Source: Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.errors import UsageError
from cnn_core.tasks.regions import Means

__all__ = ["ChallengeErrors", "pixel_error", "rand_error", "topology_errors", "warping_error"]

Mask = npt.NDArray[np.bool_]


def _cells(predicted: Tensor, target: Tensor) -> tuple[Mask, Mask]:
    """Return the cell pixels of prediction and target."""
    ours, theirs = (predicted == 1) & (target != IGNORED), target == 1
    return ours.cpu().numpy(), theirs.cpu().numpy()


def _fraction(pixels: Tensor, target: Tensor) -> float:
    return int(pixels.sum()) / max(int((target != IGNORED).sum()), 1)


def pixel_error(predicted: Tensor, target: Tensor) -> float:
    """Return the fraction of pixels with the wrong class, from masks, H x W."""
    return _fraction((predicted != target) & (target != IGNORED), target)


def rand_error(predicted: Tensor, target: Tensor) -> float:
    """Return 1 - F-score of the pairs of pixels in the same cell, over the target's cells.

    It is 1 - 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2) (section 2.4), where p_ij counts the pixels in
    cell i of the prediction and cell j of the target. A pixel predicted as membrane is a cell by
    itself. Without cells in the target the error is 0.
    """
    from scipy.ndimage import label

    ours, theirs = _cells(predicted, target)
    s, t = (label(cells)[0][theirs].astype(np.int64) for cells in (ours, theirs))
    single = int((s == 0).sum())
    s, both = s[s > 0], t[s > 0]
    # One number for each pair (i, j): a table of all pairs could be larger than the image.
    _, joint = np.unique(both * (s.max(initial=0) + 1) + s, return_counts=True)
    pairs, of_s, of_t = (int((n**2).sum()) for n in (joint, np.bincount(s), np.bincount(t)))
    return 1 - 2 * (pairs + single) / max(of_s + of_t + single, 1) if len(t) else 0.0


def _simple(neighbours: int) -> bool:
    """Return whether a pixel may flip without creating, merging or splitting cells or membranes.

    Bits are its neighbours, clockwise from the one above. Cells are 4-connected, so the
    connectivity number sum x_k - x_k x_k+1 x_k+2 over k = 0, 2, 4, 6 has to be 1 (Yokoi et al.
    1975).
    """
    x = [neighbours >> k & 1 for k in (0, 1, 2, 3, 4, 5, 6, 7, 0)]
    return sum(x[k] - x[k] * x[k + 1] * x[k + 2] for k in (0, 2, 4, 6)) == 1


SIMPLE = tuple(_simple(neighbours) for neighbours in range(256))


def topology_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the pixels that still differ once the target is warped to the prediction, H x W.

    Warping flips simple pixels that differ until there are none (Jain et al. 2010, Fig. 3): first
    row by row, then the neighbours of flipped pixels in the order in which they were flipped.
    """
    goal, start = (np.pad(cells, 1) for cells in _cells(predicted, target))
    width = start.shape[1]
    steps = (-width, 1 - width, 1, 1 + width, width, width - 1, -1, -width - 1)
    around = [np.roll(start.ravel(), -step).astype(np.uint8) << k for k, step in enumerate(steps)]
    # Each pixel's neighbours as one byte, in bytearrays: the loop below visits single pixels, and
    # indexing NumPy arrays from Python is several times slower.
    codes = bytearray(np.bitwise_or.reduce(around).tobytes())
    differs = bytearray((start != goal).tobytes())
    queue = deque(np.flatnonzero(start != goal).tolist())
    while queue:
        pixel = queue.popleft()
        if differs[pixel] and SIMPLE[codes[pixel]]:
            differs[pixel] = 0
            for k, step in enumerate(steps):
                codes[pixel + step] ^= 1 << (k ^ 4)  # the neighbour sees it in direction k + 4
                if differs[pixel + step]:
                    queue.append(pixel + step)
    left = np.frombuffer(differs, dtype=np.bool_).reshape(start.shape)[1:-1, 1:-1]
    return torch.from_numpy(left.copy())


def warping_error(predicted: Tensor, target: Tensor) -> float:
    """Return the fraction of pixels that differ after warping: those with wrong topology."""
    return _fraction(topology_errors(predicted, target), target)


class ChallengeErrors(Means):
    """Means over images of pixel, Rand and warping error, without images that are all ignored.

    Raises:
        UsageError: the number of classes is not 2.
    """

    names: ClassVar[tuple[str, ...]] = ("pixel_error", "rand_error", "warping_error")

    def __init__(self, num_classes: int) -> None:
        if num_classes != 2:
            raise UsageError(
                f"ISBI 2012 errors need two classes, membrane and cell, found {num_classes}"
            )
        super().__init__(num_classes)

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Return the three errors of the image."""
        if (target != IGNORED).any():
            yield {
                "pixel_error": pixel_error(predicted, target),
                "rand_error": rand_error(predicted, target),
                "warping_error": warping_error(predicted, target),
            }
