"""Segmentation: the errors of the ISBI 2012 challenge, cells in electron microscopy.

Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142. Class 1 is cell, 0 membrane, as is all
beyond the image; ignored pixels are membrane of both. Cells are 4-connected, membranes
8-connected: a diagonal line parts two cells. Predictions are taken as they are, at a threshold of
0.5; the challenge took the best threshold, and thinned membranes.
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
    """Return where the prediction, and where the target has cells."""
    ours, theirs = (predicted == 1) & (target != IGNORED), target == 1
    return ours.cpu().numpy(), theirs.cpu().numpy()


def _fraction(pixels: Tensor, target: Tensor) -> float:
    return int(pixels.sum()) / max(int((target != IGNORED).sum()), 1)


def pixel_error(predicted: Tensor, target: Tensor) -> float:
    """Return the fraction of pixels of the wrong class; classes, each H x W."""
    return _fraction((predicted != target) & (target != IGNORED), target)


def rand_error(predicted: Tensor, target: Tensor) -> float:
    """Return 1 - F-score of the pairs of pixels that are in one cell, over the target's cells.

    1 - 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2) (section 2.4), p_ij being pixels of cell i of the
    prediction and j of the target; one that the prediction says is membrane is a cell by itself.
    Without cells in the target, 0.
    """
    from scipy.ndimage import label

    ours, theirs = _cells(predicted, target)
    s, t = (label(cells)[0][theirs].astype(np.int64) for cells in (ours, theirs))
    single = int((s == 0).sum())
    s, both = s[s > 0], t[s > 0]
    _, joint = np.unique(both * (s.max(initial=0) + 1) + s, return_counts=True)
    pairs, of_s, of_t = (int((n**2).sum()) for n in (joint, np.bincount(s), np.bincount(t)))
    return 1 - 2 * (pairs + single) / max(of_s + of_t + single, 1) if len(t) else 0.0


def _simple(neighbours: int) -> bool:
    """Whether a pixel may flip without making, joining or parting cells or membranes.

    Bits are its neighbours, clockwise from the one above: cells 4-connected, so the connectivity
    number sum x_k - x_k x_k+1 x_k+2 over k = 0, 2, 4, 6 (Yokoi et al. 1975) has to be 1.
    """
    x = [neighbours >> k & 1 for k in (0, 1, 2, 3, 4, 5, 6, 7, 0)]
    return sum(x[k] - x[k] * x[k + 1] * x[k + 2] for k in (0, 2, 4, 6)) == 1


SIMPLE = tuple(_simple(neighbours) for neighbours in range(256))


def topology_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Return where the target still differs after it was warped to the prediction: bool, H x W.

    To warp is to flip simple pixels that differ until there are none (Jain et al. 2010, Fig. 3):
    first in the order of rows, then neighbours of what was flipped, first come, first served.
    """
    goal, start = (np.pad(cells, 1) for cells in _cells(predicted, target))
    width = start.shape[1]
    steps = (-width, 1 - width, 1, 1 + width, width, width - 1, -1, -width - 1)
    around = [np.roll(start.ravel(), -step).astype(np.uint8) << k for k, step in enumerate(steps)]
    codes = bytearray(np.bitwise_or.reduce(around).tobytes())
    differs = bytearray((start != goal).tobytes())
    queue = deque(np.flatnonzero(start != goal).tolist())
    while queue:
        place = queue.popleft()
        if differs[place] and SIMPLE[codes[place]]:
            differs[place] = 0
            for k, step in enumerate(steps):
                codes[place + step] ^= 1 << (k ^ 4)  # it is seen from the other side
                if differs[place + step]:
                    queue.append(place + step)
    left = np.frombuffer(differs, dtype=np.bool_).reshape(start.shape)[1:-1, 1:-1]
    return torch.from_numpy(left.copy())


def warping_error(predicted: Tensor, target: Tensor) -> float:
    """Return the fraction of pixels that warping leaves: those that break topology."""
    return _fraction(topology_errors(predicted, target), target)


class ChallengeErrors(Means):
    """Means over images of pixel, Rand and warping error; one without a pixel that counts is out.

    Raises:
        UsageError: there are not two classes.
    """

    names: ClassVar[tuple[str, ...]] = ("pixel_error", "rand_error", "warping_error")

    def __init__(self, num_classes: int) -> None:
        if num_classes != 2:
            raise UsageError(
                f"the errors of ISBI 2012 are for membrane and cell, not for {num_classes} classes"
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
