"""Draw images and maps in a grid on one matplotlib Axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pixels", "as_image", "as_rgb", "tile_height", "tiles"]

Pixels = NDArray[Any]


def as_image(image: Tensor) -> Pixels:
    """Return an image, C H W in [0, 1], as RGB, H W 3, or greyscale, H W, if C is not 3."""
    pixels = image.detach().float().cpu()
    if len(pixels) == 3:
        return np.asarray(pixels.permute(1, 2, 0))
    return np.asarray(pixels.mean(0))


def as_rgb(image: Tensor) -> Pixels:
    """Return an image, C H W in [0, 1], as RGB, H W 3; greyscale is repeated in each channel."""
    pixels = as_image(image)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def tile_height(
    width: float, columns: int, image: Sequence[int], *, gap: float, pair_gap: float = 0.0
) -> float:
    """Return the height in inches of an image in `tiles` if a row is `width` inches wide.

    `image` is the shape of an image, (…, H, W); `gap` and `pair_gap` are as in `tiles`.
    """
    height, image_width = image[-2:]
    units = columns * (image_width / height + gap) - gap + (columns - 1) // 2 * pair_gap
    return width / units


def tiles(
    ax: Axes,
    images: Sequence[Pixels],
    columns: int,
    *,
    gap: float = 0.08,
    pair_gap: float = 0.0,
    top_gap: float = 0.0,
    **style: Any,
) -> list[tuple[float, float]]:
    """Draw images row by row; return the top centre of each, (x, y), with y pointing down.

    Lengths are in units of an image's height: `top_gap` is the space above each image, `gap` the
    space between neighbours, and `pair_gap` an extra space after every second image, to set pairs
    apart. By default, greyscale values run from 0, black, to 1, white.

    All images share one Axes: with a subplot for each, a hundred images would take seconds.
    """
    options: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, **style}
    height, width = images[0].shape[:2]
    width_ratio = width / height
    top_centres = []
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x = column * (width_ratio + gap) + column // 2 * pair_gap
        y = row * (1 + gap + top_gap) + top_gap
        ax.imshow(image, extent=(x, x + width_ratio, y + 1, y), **options)
        top_centres.append((x + width_ratio / 2, y))
    rows = -(-len(images) // columns)
    ax.set(
        xlim=(0, columns * (width_ratio + gap) - gap + (columns - 1) // 2 * pair_gap),
        ylim=(rows * (1 + gap + top_gap) - gap, 0),
        aspect="equal",
        # Left-aligned, under the figure's title.
        anchor="W",
    )
    ax.set_axis_off()
    return top_centres
