"""Overlap-tile: images of any size through a network of one, in bounded memory.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: convolutional networks for biomedical image
segmentation", MICCAI 2015, arXiv:1505.04597, section 2 and Fig. 2: where a tile reaches beyond the
image, the image is mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cnn_core.data.windows import mirrored

__all__ = ["flip_mean", "margin_of", "overlap_tile"]

STEP = 32  # tiles begin at its multiples: poolings of up to five levels fall as in a single pass
TOGETHER = 2**18  # pixels of tiles that a network is given at once


@torch.inference_mode()
def margin_of(model: nn.Module, tile: int, in_channels: int, device: torch.device) -> int:
    """Return how many pixels of a tile a network says nothing of, on each side."""
    training = model.training
    logits = model.eval()(torch.zeros(1, in_channels, tile, tile, device=device))
    model.train(training)
    return int(tile - logits.shape[-1]) // 2


def overlap_tile(
    model: Callable[[Tensor], Tensor], images: Tensor, tile: int, margin: int
) -> Tensor:
    """Return logits, N classes H W, of images, N C H W, seen tile by tile.

    `margin` is what the network cuts off on each side of a tile. One that cuts nothing off, but
    guesses at borders, sees an eighth of the tile more on each side than is taken from it.
    """
    count, _, height, width = images.shape
    out = tile - 2 * margin
    halo = 0 if margin else tile // 8
    places = [
        (number, top, left)
        for number in range(count)
        for top in _starts(height, out, halo)
        for left in _starts(width, out, halo)
    ]
    result = images.new_empty(0)
    for group in _groups(places, max(TOGETHER // tile**2, 1)):
        windows = (mirrored(images[n], r - margin, c - margin, tile, tile) for n, r, c in group)
        logits = model(torch.stack([*windows])).float()
        if not len(result):
            result = logits.new_empty(count, logits.shape[1], height, width)
        for (number, top, left), found in zip(group, logits, strict=True):
            down, right = top + halo * (top > 0), left + halo * (left > 0)
            part = found[:, down - top : height - top, right - left : width - left]
            result[number, :, down : top + out, right : left + out] = part
    return result


def _starts(size: int, out: int, halo: int) -> range:
    """Return where the tiles begin that cover `size` pixels, each saying something of `out`."""
    stride = out - 2 * halo
    stride = max(stride // STEP * STEP, min(stride, STEP))
    return range(0, max(size - out + stride, 1), stride)


def _groups(
    places: list[tuple[int, int, int]], count: int
) -> Iterator[list[tuple[int, int, int]]]:
    return (places[start : start + count] for start in range(0, len(places), count))


def flip_mean(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logarithm of the mean probability, N classes H W, over four flips of images."""
    total = torch.zeros(())
    for axes in ((), (-1,), (-2,), (-2, -1)):
        total = total.to(images.device) + predict(images.flip(axes)).float().softmax(1).flip(axes)
    return (total / 4).log()
