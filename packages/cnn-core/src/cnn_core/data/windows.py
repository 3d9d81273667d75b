"""Shift and mirror images by whole pixels, and crop windows that extend beyond an image."""

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

    `indices` are the samples' indices in their split, which determine the random numbers;
    `targets` are in the order of `positions`. Pixels shifted in from outside are 0 in images, and
    ignored (255) in masks.
    """
    shifts = draws.shifts(indices.numpy())
    if targets.ndim == 3:
        rows = torch.arange(len(targets))
        targets = shift_and_flip(targets[:, None], rows, shifts, fill=IGNORED)[:, 0]
    return shift_and_flip(images, positions, shifts), targets


def shift_and_flip(images: Tensor, positions: Tensor, shifts: Shifts, fill: int = 0) -> Tensor:
    """Return copies, N C H W, of the images at `positions`, each shifted and then mirrored.

    Pixels shifted in from outside are `fill`.
    """
    source, (channels, height, width) = images.numpy(), images.shape[1:]
    down, right = shifts.down.clip(-height, height), shifts.right.clip(-width, width)
    result = np.full((len(positions), channels, height, width), fill, source.dtype)
    views = (result, result[..., ::-1])  # writing into the second view mirrors
    rows, columns = _slices(down, height), _slices(right, width)
    moves = (positions.tolist(), down.tolist(), right.tolist(), shifts.flipped.tolist())
    # Copy each image once, without padding the source: this loop over slices takes a third of the
    # time of indexing with whole tensors.
    for number, (position, d, r, flipped) in enumerate(zip(*moves, strict=True)):
        part = source[position, :, rows[-d], columns[-r]]
        views[flipped][number, :, rows[d], columns[r]] = part
    return torch.from_numpy(result)


def _slices(moves: Indices, size: int) -> dict[int, slice]:
    """Return the slice of an axis that an image covers after each possible shift."""
    largest = int(np.abs(moves).max(initial=0))
    return {m: slice(max(m, 0), size + min(m, 0)) for m in range(-largest, largest + 1)}


def crop_reflected(images: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Return a window of images, … H W, with reflection padding.

    Unlike with `F.pad(mode="reflect")`, the padding may be wider than the image.
    """
    rows = _reflected(top, height, images.shape[-2]).to(images.device)
    columns = _reflected(left, width, images.shape[-1]).to(images.device)
    return images.index_select(-2, rows).index_select(-1, columns)


def _reflected(start: int, count: int, size: int) -> Tensor:
    """Return positions on an axis of `size` pixels, reflected at both ends: 0 1 2 1 0 1 2 of 3."""
    period = max(2 * (size - 1), 1)
    positions = torch.arange(start, start + count) % period
    return torch.minimum(positions, period - positions)
