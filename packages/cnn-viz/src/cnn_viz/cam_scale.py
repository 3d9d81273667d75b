"""From a map's values to a share of its maximum: our way, and what other libraries do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SCALES", "enlarged", "placed", "shares"]

Size = tuple[int, int]


def enlarged(maps: Tensor, size: Size) -> Tensor:
    """Return maps, N h w, at a size (H, W): bilinear, corners not aligned; N H W."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def placed(maps: Tensor, size: Size, stride: int) -> Tensor:
    """Return maps, N h w, at a size (H, W), each position `stride` pixels wide; N H W.

    They lie at the centre, where layers without padding leave them; the border is then 0.
    """
    height, width = (min(n * stride, whole) for n, whole in zip(maps.shape[1:], size, strict=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    right, bottom = size[1] - width - left, size[0] - height - top
    return F.pad(enlarged(maps, (height, width)), (left, right, top, bottom))


def shares(raw: Tensor, size: Size, stride: int = 0) -> Tensor:
    """Return the positive part at a size, each map divided by its maximum; an empty one is 0.

    With a `stride` it is `placed`.
    """
    maps = placed(raw.relu(), size, stride) if stride else enlarged(raw.relu(), size)
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
