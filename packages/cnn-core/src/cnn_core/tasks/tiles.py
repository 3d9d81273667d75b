"""Overlap-tile: segment images of any size with a network of fixed input size.

Memory use depends on the tile size, not on the image size. Where a tile extends beyond the image,
the image is reflected.

Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net: convolutional networks for biomedical image
segmentation", MICCAI 2015, arXiv:1505.04597, section 2 and Fig. 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cnn_core.data.windows import crop_reflected

__all__ = ["flip_tta", "overlap_tile", "tile_margin"]

# The distance between tiles is a multiple of 2^5 pixels, if possible. The windows of up to five
# 2x2 poolings then align with those of a single pass over the whole image.
STEP = 32
PIXELS_PER_PASS = 2**18  # in the tiles of one forward pass


@torch.inference_mode()
def tile_margin(model: nn.Module, tile: int, in_channels: int, device: torch.device) -> int:
    """Return how many pixels a network crops from each side of a tile, by running it once."""
    # In eval mode: otherwise these zeros would enter the statistics of batch normalisation.
    training = model.training
    logits = model.eval()(torch.zeros(1, in_channels, tile, tile, device=device))
    model.train(training)
    return int(tile - logits.shape[-1]) // 2


def overlap_tile(
    model: Callable[[Tensor], Tensor], images: Tensor, tile: int, margin: int
) -> Tensor:
    """Return logits, N classes H W, for images, N C H W, computed tile by tile.

    `margin` is the number of pixels that the network crops from each side of a tile.
    """
    count, _, height, width = images.shape
    out = tile - 2 * margin
    # A network with padding sees zeros beyond a tile, so logits near the border are unreliable.
    # Tiles therefore overlap, and at sides inside the image an eighth of the tile is discarded.
    halo = 0 if margin else tile // 8
    corners = [
        (number, top, left)
        for number in range(count)
        for top in _starts(height, out, halo)
        for left in _starts(width, out, halo)
    ]
    result = images.new_empty(0)
    for group in _groups(corners, max(PIXELS_PER_PASS // tile**2, 1)):
        windows = (
            crop_reflected(images[n], top - margin, left - margin, tile, tile)
            for n, top, left in group
        )
        logits = model(torch.stack([*windows])).float()
        if not len(result):
            result = logits.new_empty(count, logits.shape[1], height, width)
        for (number, top, left), tile_logits in zip(group, logits, strict=True):
            # Skip the halo at the top and left; at the other sides the next tile overwrites it. At
            # the image's border there is no neighbour, so everything is kept.
            first_row, first_column = top + halo * (top > 0), left + halo * (left > 0)
            part = tile_logits[
                :, first_row - top : height - top, first_column - left : width - left
            ]
            result[number, :, first_row : top + out, first_column : left + out] = part
    return result


def _starts(size: int, out: int, halo: int) -> range:
    """Return the start positions of tiles with `out` output pixels that cover `size` pixels."""
    stride = out - 2 * halo
    stride = max(stride // STEP * STEP, min(stride, STEP))
    return range(0, max(size - out + stride, 1), stride)


def _groups(
    corners: list[tuple[int, int, int]], count: int
) -> Iterator[list[tuple[int, int, int]]]:
    return (corners[start : start + count] for start in range(0, len(corners), count))


def flip_tta(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return log-probabilities, N classes H W, averaged over four flips of the images.

    This is test-time augmentation. The probabilities are averaged; their logarithms can be used
    like logits.
    """
    total = torch.zeros(())
    for axes in ((), (-1,), (-2,), (-2, -1)):
        total = total.to(images.device) + predict(images.flip(axes)).float().softmax(1).flip(axes)
    return (total / 4).log()
