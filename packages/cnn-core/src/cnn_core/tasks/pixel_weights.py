"""Pixel weights for the loss (O. Ronneberger et al. 2015, section 3, Eq. 2).

    w(x) = w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / (2 sigma^2))

w_c balances the classes. d_1 and d_2 are the distances of a background pixel to the nearest and
second nearest object, so the weight is largest in thin gaps between objects. Such gaps
are only a few pixels: without weights, closing them hardly changes the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.runs.recipe import Recipe

__all__ = ["balance_weights", "border_weights", "pixel_weights"]

REACH = 6  # in sigmas; weights with a larger d_1 or d_2, below 2e-8 w_0, are set to 0


def pixel_weights(
    recipe: Recipe,
    masks: Tensor,
    num_classes: int,
    progress: Callable[[int, int], object] | None = None,
    background: int = 0,
) -> Tensor:
    """Return the pixel weights of a recipe, float32 N H W, for masks, uint8 N H W.

    `background` is the class that is no object.
    """
    weights = balance_weights(masks, num_classes) if recipe.balance else torch.ones(masks.shape)
    if recipe.border_weight:
        for number, mask in enumerate(masks):
            border = border_weights(mask, recipe.border_sigma, background)
            weights[number] += recipe.border_weight * border
            if progress is not None:
                progress(number + 1, len(masks))
    return weights


def balance_weights(masks: Tensor, num_classes: int) -> Tensor:
    """Return w_c: equal total weight for each class, mean 1, and 0 for ignored pixels."""
    counts = torch.bincount(masks.flatten(), minlength=IGNORED + 1)[:num_classes]
    present = int((counts > 0).sum())
    class_weights = torch.zeros(IGNORED + 1)
    class_weights[:num_classes] = counts.sum() / (present * counts.clamp(min=1))
    return class_weights[masks.long()]


def border_weights(mask: Tensor, sigma: float, background: int = 0) -> Tensor:
    """Return exp(-(d_1 + d_2)^2 / (2 sigma^2)) at background pixels of a mask, uint8 H W, else 0.

    Objects are the 4-connected components of each class but the background. With fewer than two
    objects all weights are 0.
    """
    first, second = nearest_distances(_objects(mask.numpy(), background), round(REACH * sigma))
    border = np.exp(-((first + second) ** 2) / (2 * sigma**2)) * (mask.numpy() == background)
    return torch.from_numpy(border.astype(np.float32))


def _objects(mask: npt.NDArray[np.uint8], background: int) -> npt.NDArray[np.int32]:
    """Return the number of each pixel's object, from 1, or 0 for background and ignored pixels."""
    from scipy.ndimage import label

    objects = np.zeros(mask.shape, np.int32)
    for number in np.unique(mask[(mask != background) & (mask != IGNORED)]):
        found, _ = label(mask == number)
        objects = np.where(found > 0, found + objects.max(), objects)
    return objects


def nearest_distances(objects: npt.NDArray[np.int32], reach: int) -> tuple[Any, Any]:
    """Return the distances to the nearest and second nearest object; infinite beyond `reach`."""
    from scipy.ndimage import distance_transform_edt, find_objects

    first, second = np.full(objects.shape, np.inf), np.full(objects.shape, np.inf)
    # Only compute distances near each object: over the whole image the time would grow with the
    # number of objects times the number of pixels.
    for number, box in enumerate(find_objects(objects), 1):
        window = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in box)
        distance = distance_transform_edt(objects[window] != number)
        near, next_near = first[window], second[window]
        second[window] = np.minimum(next_near, np.maximum(near, distance))
        first[window] = np.minimum(near, distance)
    return first, second
