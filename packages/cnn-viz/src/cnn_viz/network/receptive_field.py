"""Receptive fields of a stage: theoretical, from the layers, and effective, from gradients.

The theoretical field is the region that the layers let a position depend on; the effective field
is how strongly its value depends on each pixel: W. Luo, Y. Li, R. Urtasun, R. Zemel,
"Understanding the effective receptive field in deep convolutional neural networks", NIPS 2016,
arXiv:1701.04128.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_viz.network.hooks import hook_stages
from cnn_viz.network.inspection import inspection_mode

__all__ = ["FLOOR", "ReceptiveField", "pick_evenly", "receptive_fields"]

FLOOR = 1 - 0.9545  # of the maximum: the threshold of the effective field (section 3)


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """The receptive field of the middle position of a stage's maps; pixels as (row, column).

    `effective` is the absolute gradient of the mean over channels, summed over the image's
    channels and averaged over images: H W, float32. `start` is the first pixel of the theoretical
    field, which is `size` pixels high and wide and may extend beyond the image.
    """

    position: tuple[int, int]
    effective: Tensor
    start: tuple[int, int]
    size: int

    @property
    def side(self) -> float:
        """The side of a square with the area of all pixels above 4.55 % of the maximum."""
        return math.sqrt(int((self.effective > FLOOR * self.effective.max()).sum()))


def receptive_fields(
    model: nn.Module, images: Tensor, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, ReceptiveField]:
    """Return the receptive field of the middle position of each stage, for images N C H W.

    `sizes` are the size and stride of each stage's theoretical field, in pixels. The field is
    placed around the position; where padding leaves several placements, the one that contains the
    effective field is chosen. The network is left unchanged.
    """
    kept: dict[str, Tensor] = {}

    def keep(stage: str, maps: Tensor) -> Tensor:
        kept[stage] = maps
        return maps.clone()  # a later in-place layer would overwrite the stored maps

    fields = {}
    with inspection_mode(model, images), torch.enable_grad():
        image = images.detach().clone().requires_grad_()
        with hook_stages(model, list(sizes), keep):
            model(image * 1)  # not the leaf itself, which an in-place layer may not change
        for stage, (size, stride) in sizes.items():
            maps = kept[stage]
            middle = (maps.shape[-2] // 2, maps.shape[-1] // 2)
            # In eval mode images do not influence each other, so one backward pass of the sum
            # gives every image's own gradient.
            score = maps[..., middle[0], middle[1]].mean(1).sum()
            (gradient,) = torch.autograd.grad(score, image, retain_graph=True)
            heat = gradient.abs().sum(1).mean(0).float().cpu()
            starts = [
                _start(heat.sum(1 - axis), middle[axis], maps.shape[-2 + axis], size, stride)
                for axis in (0, 1)
            ]
            fields[stage] = ReceptiveField(
                position=middle, effective=heat, start=(starts[0], starts[1]), size=size
            )
    return fields


def _start(profile: Tensor, place: int, cells: int, size: int, stride: int) -> int:
    """Return the first pixel, along one axis, of the field of position `place` of `cells`.

    Symmetric padding centres the fields of all positions on the image. An odd remainder, or a
    stride that skips the border, shifts them by a few pixels; the pixels with a gradient decide.
    """
    pixels = len(profile)
    if size >= pixels:
        return 0
    start = place * stride + (pixels - (cells - 1) * stride - size) // 2
    affected = profile.nonzero()[:, 0]
    if len(affected):
        start = max(min(start, int(affected[0])), int(affected[-1]) + 1 - size)
    return start


def pick_evenly(names: Sequence[str], count: int) -> list[str]:
    """Return up to `count` names, evenly spaced, including the first and the last."""
    if len(names) <= count:
        return list(names)
    return [names[round(n * (len(names) - 1) / (count - 1))] for n in range(count)]
