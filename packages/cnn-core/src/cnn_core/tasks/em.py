"""Segmentation: the errors of the ISBI 2012 challenge, for cells in electron microscopy.

Class 1 is cell, class 0 membrane. Everything beyond the image is membrane, and ignored pixels are
membrane in both masks. Cells are 4-connected and membranes 8-connected, so a diagonal line
separates two cells. Each pixel gets its most likely class; the challenge used the best threshold
and thinned membranes, so its errors are often lower.

A gap of one pixel in a membrane merges two cells, but hardly changes the pixel error. The Rand
and warping errors capture it: they count wrong pairs of pixels, and wrong topology.

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
    """Return the cell pixels of the prediction and of the target."""
    ours, theirs = (predicted == 1) & (target != IGNORED), target == 1
    return ours.cpu().numpy(), theirs.cpu().numpy()


def _fraction(pixels: Tensor, target: Tensor) -> float:
    return int(pixels.sum()) / max(int((target != IGNORED).sum()), 1)


def pixel_error(predicted: Tensor, target: Tensor) -> float:
    """Return the fraction of pixels with the wrong class; masks are H x W."""
    return _fraction((predicted != target) & (target != IGNORED), target)


def rand_error(predicted: Tensor, target: Tensor) -> float:
    """Return 1 - the Rand F-score, which compares the pairs of pixels that share a cell.

    It is 1 - 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2) (section 2.4). p_ij is the number of pixels in
    cell i of the prediction and cell j of the target, s_i = sum_j p_ij and t_j = sum_i p_ij. Only
    pixels in the target's cells count; one predicted as membrane is a cell of its own. Without
    cells in the target the error is 0.
    """
    from scipy.ndimage import label

    ours, theirs = _cells(predicted, target)
    s, t = (label(cells)[0][theirs].astype(np.int64) for cells in (ours, theirs))
    membrane = int((s == 0).sum())
    s, both = s[s > 0], t[s > 0]
    # Encode each pair (i, j) as one number: a table of all pairs could exceed the image in size.
    _, joint = np.unique(both * (s.max(initial=0) + 1) + s, return_counts=True)
    pairs, of_s, of_t = (int((n**2).sum()) for n in (joint, np.bincount(s), np.bincount(t)))
    return 1 - 2 * (pairs + membrane) / max(of_s + of_t + membrane, 1) if len(t) else 0.0


def _simple(neighbours: int) -> bool:
    """Return whether flipping a pixel keeps the topology: nothing is created, merged or split.

    The bits of `neighbours` are the eight neighbours, clockwise from the one above; 1 is cell.
    Cells are 4-connected, so the connectivity number, the sum of x_k - x_k x_k+1 x_k+2 over
    k = 0, 2, 4, 6, has to be 1 (Yokoi et al. 1975).
    """
    x = [neighbours >> k & 1 for k in (0, 1, 2, 3, 4, 5, 6, 7, 0)]
    return sum(x[k] - x[k] * x[k + 1] * x[k + 2] for k in (0, 2, 4, 6)) == 1


SIMPLE = tuple(_simple(neighbours) for neighbours in range(256))


def topology_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the pixels, bool H x W, that still differ after warping target to prediction.

    Warping flips differing pixels as long as the topology stays the same (Jain et al. 2010,
    Fig. 3): first row by row, then the neighbours of flipped pixels, in the order of the flips.
    """
    goal, start = (np.pad(cells, 1) for cells in _cells(predicted, target))
    width = start.shape[1]
    steps = (-width, 1 - width, 1, 1 + width, width, width - 1, -1, -width - 1)
    around = [np.roll(start.ravel(), -step).astype(np.uint8) << k for k, step in enumerate(steps)]
    # Each pixel's neighbours are one byte of a bytearray: the loop below visits single pixels, and
    # indexing NumPy arrays from Python is several times slower.
    codes = bytearray(np.bitwise_or.reduce(around).tobytes())
    differs = bytearray((start != goal).tobytes())
    queue = deque(np.flatnonzero(start != goal).tolist())
    while queue:
        pixel = queue.popleft()
        if differs[pixel] and SIMPLE[codes[pixel]]:
            differs[pixel] = 0
            for k, step in enumerate(steps):
                codes[pixel + step] ^= 1 << (
                    k ^ 4
                )  # seen from the neighbour, the direction is k + 4
                if differs[pixel + step]:
                    queue.append(pixel + step)
    left = np.frombuffer(differs, dtype=np.bool_).reshape(start.shape)[1:-1, 1:-1]
    return torch.from_numpy(left.copy())


def warping_error(predicted: Tensor, target: Tensor) -> float:
    """Return the fraction of pixels that still differ after warping: topology errors."""
    return _fraction(topology_errors(predicted, target), target)


class ChallengeErrors(Means):
    """The means of pixel, Rand and warping error over all images with pixels that count.

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
        """Yield the three errors of the image, unless all its pixels are ignored."""
        if (target != IGNORED).any():
            yield {
                "pixel_error": pixel_error(predicted, target),
                "rand_error": rand_error(predicted, target),
                "warping_error": warping_error(predicted, target),
            }
