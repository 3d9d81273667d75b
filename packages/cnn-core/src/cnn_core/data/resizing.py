"""Resize images, with antialiasing."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

__all__ = ["resize_image", "resize_images"]

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resize_image(image: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resize an image, uint8 C H W, to (height, width) with Pillow's antialiasing.

    `interpolation` is "bilinear" or "bicubic". torch's antialiasing differs from Pillow's by up to
    one grey level, and published weights were evaluated with Pillow.
    """
    # Pillow has images of three channels, and of one, but not of two or five.
    parts = [image] if len(image) == 3 else image.split(1)
    resized = [
        np.asarray(
            Image.fromarray(part.permute(1, 2, 0).squeeze(2).numpy()).resize(
                size[::-1], RESAMPLING[interpolation]
            )
        )
        for part in parts
    ]
    pixels = torch.from_numpy(np.stack(resized, -1) if len(image) != 3 else resized[0].copy())
    return pixels.permute(2, 0, 1).contiguous()


def resize_images(images: Tensor, size: tuple[int, int], quick: bool = False) -> Tensor:
    """Resize images, uint8 N C H W, to (height, width), bilinear with torch's antialiasing.

    The pixels are rounded to whole grey levels again. `quick` computes in integers: four times as
    fast, and some pixels differ by one level.
    """
    if quick and images.device.type == "cpu":
        return F.interpolate(images, size, mode="bilinear", antialias=True)
    scaled = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)
