"""Folders of images that a network learns in a few steps: noise with a bright block, stripes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def noisy(number: int, seed: int, size: tuple[int, int]) -> Image.Image:
    """Return noise, width x height, with a bright block whose place says the class."""
    width, height = size
    pixels = np.random.default_rng(1000 * number + seed).integers(0, 90, (height, width, 3))
    x, y = number % 4 * (width // 4), number // 4 % 4 * (height // 4)
    pixels[y : y + height // 4, x : x + width // 4] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def image_folder(root: Path, *, classes: int, each: int, size: tuple[int, int]) -> str:
    """Write the images of an `imagefolder`; return the name of the dataset."""
    for number in range(classes):
        (root / f"class{number}").mkdir(parents=True)
        for seed in range(each):
            noisy(number, seed, size).save(root / f"class{number}" / f"{seed}.png")
    return f"imagefolder:{root}"


def mask_folder(root: Path, *, classes: int, count: int, size: tuple[int, int]) -> str:
    """Write a `maskfolder` whose masks have vertical stripes as bright as their class."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    width, height = size
    stripes = np.arange(width) * classes // width
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
        pixels = noise + (stripes * 180 // classes)[None, :, None]
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{seed}.png")
        mask = np.broadcast_to(stripes, (height, width)).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{seed}.png")
    return f"maskfolder:{root}"
