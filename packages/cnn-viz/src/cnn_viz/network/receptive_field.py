"""How much of the image one position of a stage sees, by construction and by its gradient.

The theoretical field is what the layers let a position see; the effective one is how much its
value depends on each pixel: W. Luo, Y. Li, R. Urtasun, R. Zemel, "Understanding the effective
receptive field in deep convolutional neural networks", NIPS 2016, arXiv:1701.04128.
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

FLOOR = 1 - 0.9545  # of the highest: what counts as seen (section 3)


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """What the middle position of a stage's maps sees; pixels as (row, column).

    `effective` is the absolute gradient of the mean over channels, summed over the image's
    channels and averaged over images: H W, float32. `start` is the first pixel of the theoretical
    field, which is `size` pixels high and wide, and may begin and end outside of the image.
    """

    position: tuple[int, int]
    effective: Tensor
    start: tuple[int, int]
    size: int

    @property
    def side(self) -> float:
        """The side of a square as large as the pixels above 4.55 % of the highest."""
        return math.sqrt(int((self.effective > FLOOR * self.effective.max()).sum()))


def receptive_fields(
    model: nn.Module, images: Tensor, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, ReceptiveField]:
    """Return what the middle position of each stage sees, for images N C H W.

    `sizes` are the size and the stride of each stage's theoretical field, in pixels. The field is
    placed around the position, and where that leaves a choice, so that it holds the effective one.
    Leaves the network as it was.
    """
    kept: dict[str, Tensor] = {}

    def keep(stage: str, maps: Tensor) -> Tensor:
        kept[stage] = maps
        return maps.clone()  # what follows may work in place

    found = {}
    with inspection_mode(model, images), torch.enable_grad():
        image = images.detach().clone().requires_grad_()
        with hook_stages(model, list(sizes), keep):
            model(image * 1)  # a layer may work in place, which a leaf forbids
        for stage, (size, stride) in sizes.items():
            maps = kept[stage]
            middle = (maps.shape[-2] // 2, maps.shape[-1] // 2)
            # Images do not influence each other in eval mode: one sum gives every gradient.
            score = maps[..., middle[0], middle[1]].mean(1).sum()
            (gradient,) = torch.autograd.grad(score, image, retain_graph=True)
            heat = gradient.abs().sum(1).mean(0).float().cpu()
            starts = [
                _start(heat.sum(1 - axis), middle[axis], maps.shape[-2 + axis], size, stride)
                for axis in (0, 1)
            ]
            found[stage] = ReceptiveField(
                position=middle, effective=heat, start=(starts[0], starts[1]), size=size
            )
    return found


def _start(profile: Tensor, place: int, cells: int, size: int, stride: int) -> int:
    """Return where the field of cell `place` of `cells` begins on an axis of pixels.

    The fields of all cells together are centred on the image, as symmetric padding has it; an
    odd remainder, or a stride that drops the border, shifts them: the pixels seen decide.
    """
    pixels = len(profile)
    if size >= pixels:
        return 0
    start = place * stride + (pixels - (cells - 1) * stride - size) // 2
    seen = profile.nonzero()[:, 0]
    if len(seen):
        start = max(min(start, int(seen[0])), int(seen[-1]) + 1 - size)
    return start


def pick_evenly(names: Sequence[str], count: int) -> list[str]:
    """Return up to `count` of the names, evenly spaced, the first and the last among them."""
    if len(names) <= count:
        return list(names)
    return [names[round(n * (len(names) - 1) / (count - 1))] for n in range(count)]
