"""Images and maps on axes, in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pixels", "as_image", "as_rgb", "tile_height", "tiles"]

Pixels = NDArray[Any]


def as_image(picture: Tensor) -> Pixels:
    """Return an image, C H W in [0, 1], as grey H W or RGB H W 3 (other C: their mean)."""
    pixels = picture.detach().float().cpu()
    if len(pixels) == 3:
        return np.asarray(pixels.permute(1, 2, 0))
    return np.asarray(pixels.mean(0))


def as_rgb(picture: Tensor) -> Pixels:
    """Return an image, C H W in [0, 1], as RGB H W 3: grey is three alike."""
    pixels = as_image(picture)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def tile_height(
    width: float, columns: int, image: Sequence[int], *, gap: float, between: float = 0.0
) -> float:
    """Return how high `tiles` shows an image of shape (…, H, W), in a row `width` inches wide."""
    height, wide = image[-2:]
    pitches = columns * (wide / height + gap) - gap + (columns - 1) // 2 * between
    return width / pitches


def tiles(
    ax: Axes,
    images: Sequence[Pixels],
    columns: int,
    *,
    gap: float = 0.08,
    between: float = 0.0,
    above: float = 0.0,
    **style: Any,
) -> list[tuple[float, float]]:
    """Show images row by row, each one unit high, with `above` units of room over each.

    `gap` is the room beside each, `between` that added after every second one, for pairs.
    Without a colour map grey is shown from 0, black, to 1, white. Returns each image's top
    centre, (x, y), with y downwards.
    """
    look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, **style}
    height, width = images[0].shape[:2]
    wide = width / height
    corners = []
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        x = column * (wide + gap) + column // 2 * between
        y = row * (1 + gap + above) + above
        ax.imshow(image, extent=(x, x + wide, y + 1, y), **look)
        corners.append((x + wide / 2, y))
    rows = -(-len(images) // columns)
    ax.set(
        xlim=(0, columns * (wide + gap) - gap + (columns - 1) // 2 * between),
        ylim=(rows * (1 + gap + above) - gap, 0),
        aspect="equal",
        anchor="W",
    )
    ax.set_axis_off()
    return corners
