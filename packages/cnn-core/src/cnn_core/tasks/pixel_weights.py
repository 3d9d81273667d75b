"""How much each pixel counts in the loss: O. Ronneberger et al. 2015, section 3, Eq. 2.

    w(x) = w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / (2 sigma^2))

w_c balances the classes; d_1 and d_2 are the distances of a background pixel (class 0) to the
nearest and to the second nearest object, so that what parts two objects that touch counts most.
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

__all__ = ["balanced", "border_weights", "pixel_weights"]

REACH = 6  # sigmas: d_1 + d_2 beyond it adds less than 2e-8 of w_0, and nothing is added


def pixel_weights(
    recipe: Recipe,
    masks: Tensor,
    num_classes: int,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Return the weights of masks, uint8 N H W, as a recipe wants them: float32 N H W."""
    weights = balanced(masks, num_classes) if recipe.balance else torch.ones(masks.shape)
    if recipe.border_weight:
        for number, mask in enumerate(masks):
            weights[number] += recipe.border_weight * border_weights(mask, recipe.border_sigma)
            if progress is not None:
                progress(number + 1, len(masks))
    return weights


def balanced(masks: Tensor, num_classes: int) -> Tensor:
    """Return w_c: pixels of a class weigh together as much as those of any other; mean 1."""
    counts = torch.bincount(masks.flatten(), minlength=IGNORED + 1)[:num_classes]
    present = int((counts > 0).sum())
    of_class = torch.zeros(IGNORED + 1)
    of_class[:num_classes] = counts.sum() / (present * counts.clamp(min=1))
    return of_class[masks.long()]


def border_weights(mask: Tensor, sigma: float) -> Tensor:
    """Return exp(-(d_1 + d_2)^2 / (2 sigma^2)) at background pixels of a mask, uint8 H W, else 0.

    Objects are the 4-connected parts of each class but 0; with fewer than two there is no border.
    """
    first, second = two_nearest(_objects(mask.numpy()), round(REACH * sigma))
    border = np.exp(-((first + second) ** 2) / (2 * sigma**2)) * (mask.numpy() == 0)
    return torch.from_numpy(border.astype(np.float32))


def _objects(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Number the objects from 1, class by class."""
    from scipy.ndimage import label

    objects = np.zeros(mask.shape, np.int32)
    for number in np.unique(mask[(mask != 0) & (mask != IGNORED)]):
        found, _ = label(mask == number)
        objects = np.where(found > 0, found + objects.max(), objects)
    return objects


def two_nearest(objects: npt.NDArray[np.int32], reach: int) -> tuple[Any, Any]:
    """Return distances to the nearest and second nearest object; infinite beyond `reach` pixels.

    Each object's distances are taken in the window that it reaches, not in the whole image.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    first, second = np.full(objects.shape, np.inf), np.full(objects.shape, np.inf)
    for number, box in enumerate(find_objects(objects), 1):
        window = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in box)
        distance = distance_transform_edt(objects[window] != number)
        near, next_near = first[window], second[window]
        second[window] = np.minimum(next_near, np.maximum(near, distance))
        first[window] = np.minimum(near, distance)
    return first, second
