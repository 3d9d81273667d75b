"""Colour jitter: brightness, contrast, saturation and hue of a batch, an amount for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["jitter", "rotate_hue"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue look


def jitter(images: Tensor, amounts: Sequence[float], u: Tensor) -> Tensor:
    """Return jittered images, N C H W in [0, 1], from uniform numbers `u` in [0, 1), N x 4.

    With amounts (b, c, s, h), brightness is multiplied by a factor from 1 - b to 1 + b, contrast
    and saturation likewise by c and s, and hue is rotated by up to h of the circle in either
    direction. Missing amounts are 0. Images of other than three channels have no saturation
    or hue.
    """
    amounts = (*amounts, 0.0, 0.0, 0.0, 0.0)[:4]
    swing = (2 * u - 1)[:, :, None, None, None].to(images.dtype)
    factors = [1 + amount * swing[:, i] for i, amount in enumerate(amounts[:3])]
    # A fixed order, unlike torchvision's random one: a whole batch goes through each step at once.
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
    """Return the luminance of images, N 1 H W; the channel mean where they are not RGB."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def rotate_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of RGB images by a fraction of the circle, N 1 1 1, through HSV."""
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    safe = chroma.clamp(min=1e-12)  # grey pixels have no hue: any will do, but not NaN
    red, green, blue = images.unbind(1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turn[:, 0]
    # Each channel as a function of the hue: Smith (1978), in the form without cases.
    corners = hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (corners + hue[:, None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[:, None] - chroma[:, None] * ramp
