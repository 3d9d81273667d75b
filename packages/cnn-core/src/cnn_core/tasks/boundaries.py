"""Segmentation: distances between boundaries, in pixels of the masks that are given.

In training and evaluation, masks have the size of the network's input: where images are resized,
so are their masks, and distances are in pixels of that size (`Preprocessing.scale_note`).

A boundary pixel is a pixel of the mask with at least one of its four neighbours outside the mask.
Everything beyond the image is outside the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED
from cnn_core.tasks.regions import Means

__all__ = ["Boundaries", "boundary", "boundary_iou", "surface_scores"]

TOLERANCE = 2.0  # pixels of the masks, like all distances
BAND = 0.02  # fraction of the image diagonal: Cheng et al. 2021, section 5.1


def boundary(masks: Tensor) -> Tensor:
    """Return the boundary pixels of masks, bool … x H x W, as masks of the same shape."""
    padded = F.pad(masks, (1, 1, 1, 1))
    vertical = padded[..., :-2, 1:-1] & padded[..., 2:, 1:-1]
    horizontal = padded[..., 1:-1, :-2] & padded[..., 1:-1, 2:]
    return masks & ~(vertical & horizontal)


def _bands(masks: Tensor) -> Tensor:
    """Return the pixels of masks, C x H x W, within 2 % of the image diagonal of the outside.

    The distance is Chebyshev's. The limit is rounded to whole pixels and is at least 1.
    """
    width = max(round(BAND * math.hypot(*masks.shape[-2:])), 1)
    inside, window = F.pad(masks, (width,) * 4), 2 * width + 1
    # Erosion by a square, one axis at a time. Doubling the length of the eroded run takes
    # log2(window) steps instead of `window`.
    for axis in (-2, -1):
        run = 1
        while run < window:
            step = min(run, window - run)
            length = inside.shape[axis] - step
            inside = inside.narrow(axis, 0, length) & inside.narrow(axis, step, length)
            run += step
    return masks & ~inside


def boundary_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the Boundary IoU of each class, C, from masks, bool C x H x W; 1 if both are empty.

    It is the intersection over union of two bands, one inside each mask along its boundary (Cheng
    et al. 2021, arXiv:2103.16562, Eq. 2).
    """
    ours, theirs = _bands(predicted), _bands(target)
    both, either = (m.sum((1, 2)).cpu().double() for m in (ours & theirs, ours | theirs))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def surface_scores(
    predicted: Tensor, target: Tensor, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Return scores, by name, for the distances between the boundaries of two masks, bool H x W.

    "boundary_f1" is the F1 of precision and recall: the fractions of the predicted and the target
    boundary that are within `tolerance` of the other one (Csurka et al. 2013, section 4). The
    other scores use the distance of each boundary pixel to the nearest pixel of the other
    boundary. "hausdorff" and "hd95" are the maximum and the 95th percentile, the larger one of the
    two directions; "assd" is the mean over the pixels of both boundaries. If one mask is empty,
    F1 is 0 and all distances are the image diagonal; if both are, F1 is 1 and all distances are 0.
    """
    from scipy.spatial import cKDTree

    ours, theirs = (boundary(m).nonzero().double().cpu().numpy() for m in (predicted, target))
    if not len(ours) or not len(theirs):
        # No distance is defined. The diagonal is finite, so that means stay finite, and larger
        # than every real distance, so that predicting nothing never helps.
        both_empty = len(ours) == len(theirs)
        far = 0.0 if both_empty else math.hypot(*target.shape)
        return {"boundary_f1": float(both_empty), "hausdorff": far, "hd95": far, "assd": far}
    to_theirs, to_ours = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
    precision, recall = ((d <= tolerance).mean() for d in (to_theirs, to_ours))
    return {
        "boundary_f1": float(2 * precision * recall / max(precision + recall, 1e-300)),
        "hausdorff": float(max(to_theirs.max(), to_ours.max())),
        "hd95": float(max(np.percentile(to_theirs, 95), np.percentile(to_ours, 95))),
        "assd": float(np.concatenate([to_theirs, to_ours]).mean()),
    }


class Boundaries(Means):
    """Means of `surface_scores` and Boundary IoU over all images and their foreground classes.

    Distances are in pixels of the network's input, not of images that are resized to it.

    `background` is the number of the class that is background, 0 until `metrics_of` sets it, or
    None. A class counts for an image if its target or prediction contains it. Ignored pixels
    belong to no class.
    """

    background: int | None = 0

    names: ClassVar[tuple[str, ...]] = ("boundary_f1", "boundary_iou", "hausdorff", "hd95", "assd")

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Yield the scores of each class that is present in the image."""
        foreground = [k for k in range(self.num_classes) if k != self.background]
        classes = torch.tensor(foreground, device=target.device).view(-1, 1, 1)
        ours, theirs = (predicted == classes) & (target != IGNORED), target == classes
        present = (ours | theirs).any(2).any(1)
        ours, theirs = ours[present], theirs[present]
        ious = boundary_iou(ours, theirs).tolist()
        for mask, true, iou in zip(ours, theirs, ious, strict=True):
            yield {**surface_scores(mask, true), "boundary_iou": iou}
