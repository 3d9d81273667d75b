"""Images and maps in a grid on one pair of axes."""

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
    """Return an image, C H W in [0, 1], as RGB H W 3, or as grey H W if C is not 3."""
    pixels = image.detach().float().cpu()
    if len(pixels) == 3:
        return np.asarray(pixels.permute(1, 2, 0))
    return np.asarray(pixels.mean(0))


def as_rgb(image: Tensor) -> Pixels:
    """Return an image, C H W in [0, 1], as RGB H W 3; grey is repeated in each channel."""
    pixels = as_image(image)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def tile_height(
    width: float, columns: int, image: Sequence[int], *, gap: float, between: float = 0.0
) -> float:
    """Return the height in inches that `tiles` gives an image (…, H, W) in a row `width` wide."""
    height, image_width = image[-2:]
    pitches = columns * (image_width / height + gap) - gap + (columns - 1) // 2 * between
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
    """Show images row by row, each one unit high, with `above` units of space over each.

    `gap` is the space between neighbours; `between` is added after every second image, to set
    pairs apart. Without a colour map, grey values run from 0, black, to 1, white. Returns the top
    centre of each image, (x, y), with y pointing down.

    All images share one pair of axes: a subplot each would cost seconds for a hundred images.
    """
    options: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, **style}
    height, width = images[0].shape[:2]
    width_ratio = width / height
    corners = []
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        x = column * (width_ratio + gap) + column // 2 * between
        y = row * (1 + gap + above) + above
        ax.imshow(image, extent=(x, x + width_ratio, y + 1, y), **options)
        corners.append((x + width_ratio / 2, y))
    rows = -(-len(images) // columns)
    ax.set(
        xlim=(0, columns * (width_ratio + gap) - gap + (columns - 1) // 2 * between),
        ylim=(rows * (1 + gap + above) - gap, 0),
        aspect="equal",
        # Left-aligned, under the figure's title.
        anchor="W",
    )
    ax.set_axis_off()
    return corners
