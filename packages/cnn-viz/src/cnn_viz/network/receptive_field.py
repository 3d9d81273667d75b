"""The receptive field of a stage: theoretical, from its layers, and effective, from gradients.

The theoretical field of a position is the region of the image that can influence it. The effective
field says how strongly each pixel influences it: W. Luo, Y. Li, R. Urtasun, R. Zemel,
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

__all__ = ["ReceptiveField", "THRESHOLD", "pick_evenly", "receptive_fields"]

# The paper counts pixels above this fraction of the maximum as the effective field (section 3).
THRESHOLD = 1 - 0.9545


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """The receptive field of the middle position of a stage's maps.

    `position` is its row and column in the maps. `effective`, float32 H W, is the absolute
    gradient of the output at this position (the mean over channels) with respect to each pixel,
    summed over the image's channels and averaged over images. `start` is the (row, column) of the
    first pixel of the theoretical field, which is `size` pixels high and wide and may extend
    beyond the image.
    """

    position: tuple[int, int]
    effective: Tensor
    start: tuple[int, int]
    size: int

    @property
    def side(self) -> float:
        """The side of a square with the area of the pixels above 4.55 % of the maximum."""
        return math.sqrt(int((self.effective > THRESHOLD * self.effective.max()).sum()))


def receptive_fields(
    model: nn.Module, images: Tensor, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, ReceptiveField]:
    """Return the receptive field of the middle position of each stage, for images N C H W.

    `sizes` holds the size and the stride of the theoretical field of each stage, in pixels. The
    field is centred on its position; if padding allows several placements, the one that contains
    the effective field is chosen. The network is left unchanged.
    """
    stored: dict[str, Tensor] = {}

    def store(stage: str, maps: Tensor) -> Tensor:
        stored[stage] = maps
        return maps.clone()  # a later in-place layer would overwrite the stored maps

    fields = {}
    with inspection_mode(model, images), torch.enable_grad():
        image = images.detach().clone().requires_grad_()
        with hook_stages(model, list(sizes), store):
            model(image * 1)  # a copy: an in-place layer must not change the leaf
        for stage, (size, stride) in sizes.items():
            maps = stored[stage]
            middle = (maps.shape[-2] // 2, maps.shape[-1] // 2)
            # In eval mode images do not influence each other, so one backward pass from the sum
            # gives the gradient of every image.
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


def _start(profile: Tensor, position: int, positions: int, size: int, stride: int) -> int:
    """Return the first pixel of a position's field along one axis.

    With symmetric padding, the fields of all `positions` together are centred on the image. If the
    padding is uneven, or a stride skips the border, they are shifted by a few pixels. The shift is
    the smallest one with which the field contains every pixel that has a gradient.
    """
    pixels = len(profile)
    if size >= pixels:
        return 0
    start = position * stride + (pixels - (positions - 1) * stride - size) // 2
    affected = profile.nonzero()[:, 0]
    if len(affected):
        start = max(min(start, int(affected[0])), int(affected[-1]) + 1 - size)
    return start


def pick_evenly(names: Sequence[str], count: int) -> list[str]:
    """Return up to `count` names, evenly spaced, including the first and the last."""
    if len(names) <= count:
        return list(names)
    return [names[round(n * (len(names) - 1) / (count - 1))] for n in range(count)]
