"""A contact sheet of samples: images with class names below them, or with masks overlaid."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cnn_core.data.counter_rng import key_of
from cnn_core.data.dataset import Dataset, Files, Split
from cnn_core.data.streaming import Decoder

__all__ = ["draw_sheet"]

CELL = 112  # pixels; the side of the square that an image is fitted into
LABEL = 20  # pixels below the image, for the class name
GAP = 8
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
# From the palette of Okabe and Ito (2008), which colour-blind readers can tell apart. Class 0 has
# no overlay; 255 is grey.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178))


def draw_sheet(dataset: Dataset, split: str, columns: int = 10, rows: int = 6) -> Image.Image:
    """Draw a random but fixed choice of a split's samples, about equally many of each class."""
    part = dataset.split(split)
    labels = part.targets if isinstance(part.targets, Tensor) and part.targets.ndim == 1 else None
    chosen = _choose(labels, len(part), columns * rows, len(dataset.spec.classes))
    rows = -(-len(chosen) // columns)
    width, height = columns * (CELL + GAP) + GAP, rows * (CELL + LABEL + GAP) + GAP
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, index in enumerate(chosen):
        image, target = _sample(part, index)
        left = GAP + number % columns * (CELL + GAP)
        top = GAP + number // columns * (CELL + LABEL + GAP)
        canvas.paste(_cell(image, target), (left, top))
        if labels is not None:
            text = _shorten(dataset.spec.classes[int(target)], font)
            draw.text((left + CELL / 2, top + CELL + 3), text, INK, font, anchor="ma")
    return canvas


def _choose(labels: Tensor | None, length: int, count: int, classes: int) -> list[int]:
    """Return the indices of a random but fixed choice; with labels, one of each class in turn."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(key_of(0, 0) >> 1))
    if labels is None:
        return order[:count].tolist()
    per_class = max(count // classes, 1)
    members = [order[labels[order] == number][:per_class].tolist() for number in range(classes)]
    rounds = [member[r] for r in range(per_class) for member in members if r < len(member)]
    return rounds[:count]


def _sample(part: Split | Files, index: int) -> tuple[Tensor, Tensor]:
    if isinstance(part, Files):
        return Decoder(part, None)[index]
    return part.images[index], part.targets[index]


def _cell(pixels: Tensor, target: Tensor) -> Image.Image:
    """Return an image scaled to fit a cell; a mask is overlaid in colour."""
    # Of other channels than grey or RGB, the first or the first three are shown.
    rgb = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    image = Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy())
    if target.ndim == 2:
        palette = torch.full((256, 3), 128, dtype=torch.uint8)
        table = torch.tensor(COLOURS, dtype=torch.uint8)
        palette[1:255] = table[torch.arange(254) % len(COLOURS)]
        overlay = Image.fromarray(palette[target.long()].numpy())
        opacity = Image.fromarray(((target > 0).to(torch.uint8) * 128).numpy())
        image.paste(overlay, mask=opacity)
    # Enlarge by nearest neighbour: interpolation would only blur 8x8 digits.
    enlarged = max(image.size) < CELL
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    scale = CELL / max(image.size)
    image = image.resize([max(round(side * scale), 1) for side in image.size], method)
    cell = Image.new("RGB", (CELL, CELL), BACKGROUND)
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


def _shorten(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Shorten a class name to the width of a cell."""
    text = text.replace("_", " ")
    while font.getlength(text) > CELL and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text
