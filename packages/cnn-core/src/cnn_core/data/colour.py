"""Brightness, contrast, saturation and hue of a batch of images, each by its own amount."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["jittered"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue look


def jittered(pictures: Tensor, amounts: Sequence[float], u: Tensor) -> Tensor:
    """Return changed images, N C H W in [0, 1], by draws `u` in [0, 1), N x 4.

    With amounts (b, c, s, h) brightness, contrast and saturation are multiplied by 1 - b to 1 + b
    and so on, and hue turns by up to h of the circle either way. Grey images have the first
    two only.
    """
    amounts = (*amounts, 0.0, 0.0, 0.0, 0.0)[:4]
    swing = (2 * u - 1)[:, :, None, None, None].to(pictures.dtype)
    by = [1 + amount * swing[:, i] for i, amount in enumerate(amounts[:3])]
    if amounts[0]:
        pictures = (pictures * by[0]).clamp(0, 1)
    if amounts[1]:
        pictures = _blend(pictures, grey(pictures).mean((2, 3), keepdim=True), by[1])
    if pictures.shape[1] == 3 and amounts[2]:
        pictures = _blend(pictures, grey(pictures), by[2])
    if pictures.shape[1] == 3 and amounts[3]:
        pictures = turned(pictures, amounts[3] * swing[:, 3])
    return pictures


def _blend(pictures: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (towards + factor * (pictures - towards)).clamp(0, 1)


def grey(pictures: Tensor) -> Tensor:
    """Return how bright images look, N 1 H W."""
    if pictures.shape[1] != 3:
        return pictures.mean(1, keepdim=True)
    return (pictures * pictures.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def turned(pictures: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of RGB images by a part of the circle, N 1 1 1, by way of HSV."""
    value, chroma = pictures.amax(1), pictures.amax(1) - pictures.amin(1)
    safe = chroma.clamp(min=1e-12)
    red, green, blue = pictures.unbind(1)
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
