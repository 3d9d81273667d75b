"""From a map's values to a share of its maximum: our way, and what other libraries do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SCALES", "box", "enlarged", "shares"]

Size = tuple[int, int]


def resize_to_image(maps: Tensor, size: Size) -> Tensor:
    """Return maps, N h w, at a size (H, W): bilinear, corners not aligned; N H W."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def box(shape: Size, size: Size, stride: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of what maps, h w, stand for in an image, (H, W).

    Each position is `stride` pixels wide, and all lie at the centre, where layers without padding
    leave them. Without a stride maps are stretched over the image.
    """
    if not stride:
        return 0, 0, *size
    height, width = (min(n * stride, whole) for n, whole in zip(shape, size, strict=True))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def shares(raw: Tensor, size: Size, stride: int = 0) -> Tensor:
    """Return the positive part at a size, each map divided by its maximum; an empty one is 0.

    It lies in its `box`; around it is 0.
    """
    top, left, height, width = box((raw.shape[1], raw.shape[2]), size, stride)
    maps = resize_to_image(raw.relu(), (height, width))
    maps = F.pad(maps, (left, size[1] - left - width, top, size[0] - top - height))
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0)


def pytorch_grad_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as pytorch-grad-cam 1.5 does: from minimum to maximum, before and after enlarging."""
    return _stretched(resize_to_image(_stretched(raw.relu(), 1e-7), size), 1e-7)


def torch_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as torch-cam 0.5 does: from minimum to maximum, and not enlarged; N h w."""
    return _stretched(raw.relu(), 1e-8)


def _stretched(maps: Tensor, eps: float) -> Tensor:
    above = maps - maps.amin((1, 2), keepdim=True)
    return above / (above.amax((1, 2), keepdim=True) + eps)


SCALES: dict[str, Callable[[Tensor, Size], Tensor]] = {
    "cnnzoo": shares,
    "pytorch-grad-cam": pytorch_grad_cam,
    "torch-cam": torch_cam,
}
