"""Occlusion: how much a score falls where a patch of the image is covered.

M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014,
arXiv:1311.2901, section 4.2. Patches overlap: a pixel has the mean of those that cover it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cnn_core.errors import UsageError

__all__ = ["occlusion"]


def occlusion(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    patch: int,
    stride: int,
    *,
    fill: float = 0.0,
    batch: int = 16,
) -> Tensor:
    """Return how far a score falls where `patch` pixels squared are `fill`: H W, signed.

    `score` takes images, N C H W, and returns N numbers; `image` is C H W. Patches begin every
    `stride` pixels and at the far borders, so that every pixel is covered.

    Raises:
        UsageError: the patch does not fit the image, or the stride leaves gaps.
    """
    height, width = image.shape[-2:]
    if not 1 <= patch <= min(height, width) or not 1 <= stride <= patch:
        raise UsageError(
            f"patch = {patch}, stride = {stride}: expected a patch within {height}x{width}, and a "
            "stride no longer than it"
        )
    places = [
        (y, x) for y in _starts(height, patch, stride) for x in _starts(width, patch, stride)
    ]
    whole = score(image[None])[0]
    falls, covered = torch.zeros(height, width), torch.zeros(height, width)
    for start in range(0, len(places), batch):
        group = places[start : start + batch]
        images = image.repeat(len(group), 1, 1, 1)
        for one, (y, x) in zip(images, group, strict=True):
            one[:, y : y + patch, x : x + patch] = fill
        for fall, (y, x) in zip((whole - score(images)).tolist(), group, strict=True):
            falls[y : y + patch, x : x + patch] += fall
            covered[y : y + patch, x : x + patch] += 1
    return falls / covered


def _starts(size: int, patch: int, stride: int) -> list[int]:
    return sorted({*range(0, size - patch, stride), size - patch})
