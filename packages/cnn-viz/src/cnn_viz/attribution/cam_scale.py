"""Resize and scale maps to [0, 1]: our own way, and as other libraries do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SCALES", "box", "resize_to_image", "scale_to_maximum"]

Size = tuple[int, int]


def resize_to_image(maps: Tensor, size: Size) -> Tensor:
    """Resize maps, N h w, to (H, W) bilinearly, with align_corners=False: N H W."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def box(shape: Size, size: Size, stride: int) -> tuple[int, int, int, int]:
    """Return the box of an image, (H, W), that maps, h w, cover: top, left, height, width.

    Each position covers `stride` pixels. The box is centred: with symmetric padding it is the
    whole image, and without padding every layer crops the border equally on both sides.
    Stretching the maps over the image would then shift them away from the pixels they describe.
    A stride of 0 stretches them over the image.
    """
    if not stride:
        return 0, 0, *size
    height, width = (min(n * stride, side) for n, side in zip(shape, size, strict=True))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def scale_to_maximum(raw: Tensor, size: Size, stride: int = 0) -> Tensor:
    """Return the positive part resized into its `box`, 0 outside, each map over its maximum.

    An empty map stays 0.
    """
    top, left, height, width = box((raw.shape[1], raw.shape[2]), size, stride)
    maps = resize_to_image(raw.relu(), (height, width))
    maps = F.pad(maps, (left, size[1] - left - width, top, size[0] - top - height))
    # Divide by the exact maximum: an epsilon would dim maps with small values.
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0)


def pytorch_grad_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as pytorch-grad-cam 1.5 does: min-max before and after resizing."""
    return _min_max(resize_to_image(_min_max(raw.relu(), 1e-7), size), 1e-7)


def torch_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as torch-cam 0.5 does: min-max, not resized; N h w."""
    return _min_max(raw.relu(), 1e-8)


def _min_max(maps: Tensor, eps: float) -> Tensor:
    above = maps - maps.amin((1, 2), keepdim=True)
    return above / (above.amax((1, 2), keepdim=True) + eps)


SCALES: dict[str, Callable[[Tensor, Size], Tensor]] = {
    "cnnzoo": scale_to_maximum,
    "pytorch-grad-cam": pytorch_grad_cam,
    "torch-cam": torch_cam,
}
