"""Copies of images shifted by whole pixels, and windows that reach beyond the border."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED, Draws, Shifts
from cnn_core.data.counter_rng import Indices

__all__ = ["crop_reflected", "shift_and_flip", "shifted"]


def shifted(
    images: Tensor, targets: Tensor, positions: Tensor, indices: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Return the images at `positions`, and their targets, randomly shifted and mirrored.

    `indices` are the samples' indices in their split, which decide the random numbers; `targets`
    are in the order of `positions`. Pixels that move in are black, and ignored in masks.
    """
    shifts = draws.shifts(indices.numpy())
    if targets.ndim == 3:
        everything = torch.arange(len(targets))
        targets = shift_and_flip(targets[:, None], everything, shifts, fill=IGNORED)[:, 0]
    return shift_and_flip(images, positions, shifts), targets


def shift_and_flip(images: Tensor, positions: Tensor, shifts: Shifts, fill: int = 0) -> Tensor:
    """Copy the images at `positions`, N C H W, each shifted by its own pixels, then mirrored.

    Pixels that move in are `fill`.
    """
    source, (channels, height, width) = images.numpy(), images.shape[1:]
    down, right = shifts.down.clip(-height, height), shifts.right.clip(-width, width)
    result = np.full((len(positions), channels, height, width), fill, source.dtype)
    views = (result, result[..., ::-1])  # writing into the second view mirrors
    rows, columns = _slices(down, height), _slices(right, width)
    moves = (positions.tolist(), down.tolist(), right.tolist(), shifts.flipped.tolist())
    # One copy of each image, without padding the source: this loop over slices takes a third of
    # the time of indexing with whole tensors.
    for number, (position, d, r, flipped) in enumerate(zip(*moves, strict=True)):
        part = source[position, :, rows[-d], columns[-r]]
        views[flipped][number, :, rows[d], columns[r]] = part
    return torch.from_numpy(result)


def _slices(moves: Indices, size: int) -> dict[int, slice]:
    """Return, for each move and its opposite, the slice of a side that stays in the image."""
    furthest = int(np.abs(moves).max(initial=0))
    return {m: slice(max(m, 0), size + min(m, 0)) for m in range(-furthest, furthest + 1)}


def crop_reflected(images: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Return a window of images, … H W, with reflection padding by any number of pixels.

    Unlike `F.pad(mode="reflect")` it may reach further than the image is wide.
    """
    rows = _reflected(top, height, images.shape[-2]).to(images.device)
    columns = _reflected(left, width, images.shape[-1]).to(images.device)
    return images.index_select(-2, rows).index_select(-1, columns)


def _reflected(start: int, count: int, size: int) -> Tensor:
    """Return positions on a line of `size` pixels, reflected at its ends: 2 1 0 1 2 … 2 1 0."""
    period = max(2 * (size - 1), 1)
    positions = torch.arange(start, start + count) % period
    return torch.minimum(positions, period - positions)
