"""`digit_scenes`: digits on textured backgrounds, with masks, for segmentation without downloads.

Scenes are composed of the digits that come with cnn-core, and are the same every time. Training
scenes contain only digits from the training split, test scenes only digits from the test split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.counter_rng import Floats, key_of, uniform
from cnn_core.data.dataset import Dataset
from cnn_core.data.readers.digits import load as load_digits
from cnn_core.data.splits import Split
from cnn_core.specs import DatasetSpec

__all__ = ["load"]

SIZE = 64  # pixels, the side of a scene
DIGITS = 3  # per scene
INK = 96  # from 0 to 255: pixels with at least this much ink belong to the digit


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the scenes; `root` and `download` are not used."""
    digits = load_digits(spec, root, download)
    splits = {}
    for name, count in spec.splits.items():
        source = digits.split(name)
        assert isinstance(source, Split)
        key = key_of(0, 0, f"scenes/{name}")
        scenes = [scene(source.images, u) for u in uniform(key, np.arange(count), 64)]
        images, masks = zip(*scenes, strict=True)
        splits[name] = Split(torch.stack(images), torch.stack(masks))
    return Dataset(spec, splits)


def scene(digits: Tensor, u: Floats) -> tuple[Tensor, Tensor]:
    """Return a scene: an image, uint8 1 64 64, and its mask, uint8 64 64, which is 1 on digits.

    `u` are 64 uniform random numbers: 32 for the background, then five for each digit.
    """
    image = background(u[:32])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    for number in range(DIGITS):
        choice, size, top, left, brightness = u[32 + 5 * number : 37 + 5 * number]
        side = 16 + int(size * 13)  # 16 to 28 pixels
        row, column = int(top * (SIZE - side + 1)), int(left * (SIZE - side + 1))
        ink = digits[int(choice * len(digits))][None].float()
        ink = F.interpolate(ink, (side, side), mode="bicubic").clamp(0, 255)[0, 0]
        region = (slice(row, row + side), slice(column, column + side))
        alpha = ink / 255
        # Sometimes only a little brighter than the background, so that a threshold is not enough.
        image[region] = (1 - alpha) * image[region] + alpha * (150 + 105 * float(brightness))
        mask[region] |= (ink >= INK).to(torch.uint8)
    return image.round().to(torch.uint8)[None], mask


def background(u: Floats) -> Tensor:
    """Return a texture of coarse noise and stripes, 64 x 64, with grey levels from 20 to 140."""
    coarse = torch.from_numpy(u[:25]).float().view(1, 1, 5, 5)
    clouds = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True)[0, 0]
    angle, period, phase = u[25:28]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = x * np.cos(np.pi * angle) + y * np.sin(np.pi * angle)
    stripes = torch.sin(2 * np.pi * (along / (5 + 10 * period) + phase)) / 2 + 0.5
    return 20 + 120 * (0.7 * clouds + 0.3 * stripes).clamp(0, 1)
