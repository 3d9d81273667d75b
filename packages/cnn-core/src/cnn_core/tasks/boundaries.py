"""Segmentation: how far boundaries are from each other, in pixels.

The boundary of a mask is those of its pixels that have one of their four neighbours outside it;
beyond the image all is outside.
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

TOLERANCE = 2.0  # pixels
BAND = 0.02  # of the diagonal: Cheng et al. 2021, section 5.1


def boundary(masks: Tensor) -> Tensor:
    """Return the pixels of masks, bool, … x H x W, that have a 4-neighbour outside."""
    wide = F.pad(masks, (1, 1, 1, 1))
    rows = wide[..., :-2, 1:-1] & wide[..., 2:, 1:-1]
    columns = wide[..., 1:-1, :-2] & wide[..., 1:-1, 2:]
    return masks & ~(rows & columns)


def _bands(masks: Tensor) -> Tensor:
    """Return the pixels of masks, C x H x W, at most 2 % of the diagonal from the outside.

    That is Chebyshev distance, rounded to whole pixels, at least 1.
    """
    width = max(round(BAND * math.hypot(*masks.shape[-2:])), 1)
    inside, window = F.pad(masks, (width,) * 4), 2 * width + 1
    for axis in (-2, -1):
        seen = 1  # pixels that are known to be inside from each place on
        while seen < window:
            step = min(seen, window - seen)
            left = inside.shape[axis] - step
            inside = inside.narrow(axis, 0, left) & inside.narrow(axis, step, left)
            seen += step
    return masks & ~inside


def boundary_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """Return Boundary IoU of masks, bool, C x H x W; of two empty ones, 1.

    Intersection over union of the bands along both boundaries, each inside its mask (Cheng et
    al. 2021, arXiv:2103.16562, Eq. 2).
    """
    ours, theirs = _bands(predicted), _bands(target)
    found = (ours & theirs, ours | theirs)
    both, either = (pixels.sum((1, 2)).cpu().double() for pixels in found)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def surface_scores(
    predicted: Tensor, target: Tensor, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Return what the distances between the boundaries of two masks, bool, H x W, say.

    "boundary_f1": of the fractions of either boundary that are at most `tolerance` from the other
    (Csurka et al. 2013, section 4); "hausdorff" and "hd95": the largest and the 95th percentile,
    linear, of the distances to the nearest pixel of the other boundary, the larger of the two
    directions; "assd": their mean over both directions. If one mask is empty, F1 is 0 and all
    distances are the image's diagonal; if both are, 1 and 0.
    """
    from scipy.spatial import cKDTree

    ours, theirs = (boundary(m).nonzero().double().cpu().numpy() for m in (predicted, target))
    if not len(ours) or not len(theirs):
        same = len(ours) == len(theirs)
        far = 0.0 if same else math.hypot(*target.shape)
        return {"boundary_f1": float(same), "hausdorff": far, "hd95": far, "assd": far}
    there, back = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
    precision, recall = ((d <= tolerance).mean() for d in (there, back))
    return {
        "boundary_f1": float(2 * precision * recall / max(precision + recall, 1e-300)),
        "hausdorff": float(max(there.max(), back.max())),
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd": float(np.concatenate([there, back]).mean()),
    }


class Boundaries(Means):
    """Mean of `surface_scores` and Boundary IoU over images and classes; 0 is the background.

    A pair of image and class counts where the target or the prediction has the class. Ignored
    pixels are of no class.
    """

    names: ClassVar[tuple[str, ...]] = ("boundary_f1", "boundary_iou", "hausdorff", "hd95", "assd")

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Return the numbers of each class that is there."""
        classes = torch.arange(1, self.num_classes, device=target.device).view(-1, 1, 1)
        ours, theirs = (predicted == classes) & (target != IGNORED), target == classes
        there = (ours | theirs).any(2).any(1)
        ours, theirs = ours[there], theirs[there]
        ious = boundary_iou(ours, theirs).tolist()
        for mask, true, iou in zip(ours, theirs, ious, strict=True):
            yield {**surface_scores(mask, true), "boundary_iou": iou}
