"""Colour jitter: random brightness, contrast, saturation and hue for each image of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["jitter", "rotate_hue"]

LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue, ITU-R BT.601


def jitter(images: Tensor, amounts: Sequence[float], u: Tensor) -> Tensor:
    """Return jittered images, N C H W in [0, 1]; `u`, N x 4, are uniform numbers in [0, 1).

    With amounts (b, c, s, h), brightness is multiplied by a factor from 1 - b to 1 + b, contrast
    by one from 1 - c to 1 + c, and saturation by one from 1 - s to 1 + s. Hue is rotated by at
    most h of a full turn in either direction. Missing amounts are 0. Saturation and hue change
    only in images with three channels.
    """
    amounts = (*amounts, 0.0, 0.0, 0.0, 0.0)[:4]
    swing = (2 * u - 1)[:, :, None, None, None].to(images.dtype)
    factors = [1 + amount * swing[:, i] for i, amount in enumerate(amounts[:3])]
    # The order is fixed, unlike torchvision's, so that each step can process the whole batch.
    if amounts[0]:
        images = (images * factors[0]).clamp(0, 1)
    if amounts[1]:
        images = _blend(images, luminance(images).mean((2, 3), keepdim=True), factors[1])
    if images.shape[1] == 3 and amounts[2]:
        images = _blend(images, luminance(images), factors[2])
    if images.shape[1] == 3 and amounts[3]:
        images = rotate_hue(images, amounts[3] * swing[:, 3])
    return images


def _blend(images: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (towards + factor * (images - towards)).clamp(0, 1)


def luminance(images: Tensor) -> Tensor:
    """Return the luminance of images, N 1 H W: of non-RGB images, the mean over channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def rotate_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of RGB images by `turn`, N 1 1 1, a fraction of a full turn, in HSV."""
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    safe = chroma.clamp(min=1e-12)  # avoids 0 / 0 at grey pixels, which have no hue
    red, green, blue = images.unbind(1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turn[:, 0]
    # HSV back to RGB (Smith 1978), as one formula for all channels and hues.
    corners = hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (corners + hue[:, None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[:, None] - chroma[:, None] * ramp
