"""Resize maps and scale them to [0, 1], as cnnzoo does by default or as other libraries do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SCALES", "covered_box", "resize_to_image", "scale_to_maximum"]

Size = tuple[int, int]  # height, width


def resize_to_image(maps: Tensor, size: Size) -> Tensor:
    """Resize maps, N h w, to N H W by bilinear interpolation, with align_corners=False."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def covered_box(shape: Size, size: Size, stride: int) -> tuple[int, int, int, int]:
    """Return the box that a map covers in the image, in pixels: top, left, height, width.

    `shape` is (h, w) of the map, `size` is (H, W) of the image, and each position of the map
    covers `stride` pixels. The box is centred. With symmetric padding it is the whole image;
    without padding, every layer crops both sides equally, and a map stretched over the image
    would no longer lie on the pixels that it describes. With a stride of 0 the box is the image.
    """
    if not stride:
        return 0, 0, *size
    height, width = (min(n * stride, side) for n, side in zip(shape, size, strict=True))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def scale_to_maximum(raw: Tensor, size: Size, stride: int = 0) -> Tensor:
    """Return the positive part of each map, resized to the image and divided by its maximum.

    The map fills its `covered_box` and is 0 outside. A map without positive values stays 0.
    """
    top, left, height, width = covered_box((raw.shape[1], raw.shape[2]), size, stride)
    maps = resize_to_image(raw.relu(), (height, width))
    maps = F.pad(maps, (left, size[1] - left - width, top, size[0] - top - height))
    # Divide by the exact maximum: adding an epsilon would dim maps with small values.
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0)


def pytorch_grad_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as pytorch-grad-cam 1.5 does: min-max before and after resizing."""
    return _min_max(resize_to_image(_min_max(raw.relu(), 1e-7), size), 1e-7)


def torch_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as torch-cam 0.5 does: min-max, without resizing; N h w."""
    return _min_max(raw.relu(), 1e-8)


def _min_max(maps: Tensor, eps: float) -> Tensor:
    shifted = maps - maps.amin((1, 2), keepdim=True)
    return shifted / (shifted.amax((1, 2), keepdim=True) + eps)


SCALES: dict[str, Callable[[Tensor, Size], Tensor]] = {
    "cnnzoo": scale_to_maximum,
    "pytorch-grad-cam": pytorch_grad_cam,
    "torch-cam": torch_cam,
}
