"""From a map's values to a share of its maximum: our way, and what other libraries do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SCALES", "enlarged", "shares"]

Size = tuple[int, int]


def enlarged(maps: Tensor, size: Size) -> Tensor:
    """Return maps, N h w, at a size (H, W): bilinear, corners not aligned; N H W."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def shares(raw: Tensor, size: Size) -> Tensor:
    """Return the positive part at a size, each map divided by its maximum; an empty one is 0."""
    maps = enlarged(raw.relu(), size)
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0)


def pytorch_grad_cam(raw: Tensor, size: Size) -> Tensor:
    """Scale as pytorch-grad-cam 1.5 does: from minimum to maximum, before and after enlarging."""
    return _stretched(enlarged(_stretched(raw.relu(), 1e-7), size), 1e-7)


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
