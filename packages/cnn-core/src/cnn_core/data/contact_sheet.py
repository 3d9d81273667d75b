"""A sheet of samples: images with their classes below, or with their masks beside them."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cnn_core.data.counter_rng import key_of
from cnn_core.data.dataset import Dataset, Files, Split
from cnn_core.data.streaming import Decoder

__all__ = ["sheet"]

CELL = 112  # pixels, of an image on the sheet
LABEL = 20  # below it
GAP = 8
GROUND, INK = (255, 255, 255), (40, 40, 40)
# Okabe and Ito (2008), told apart by everyone; class 0 is left as it is, 255 is grey.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178))


def sheet(dataset: Dataset, split: str, columns: int = 10, rows: int = 6) -> Image.Image:
    """Draw samples of a split, as many of each class as there is room for, chosen by a seed."""
    part = dataset.split(split)
    labels = part.targets if isinstance(part.targets, Tensor) and part.targets.ndim == 1 else None
    chosen = _chosen(labels, len(part), columns * rows, len(dataset.spec.classes))
    rows = -(-len(chosen) // columns)
    width, height = columns * (CELL + GAP) + GAP, rows * (CELL + LABEL + GAP) + GAP
    canvas = Image.new("RGB", (width, height), GROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for place, index in enumerate(chosen):
        picture, target = _sample(part, index)
        left = GAP + place % columns * (CELL + GAP)
        top = GAP + place // columns * (CELL + LABEL + GAP)
        canvas.paste(_pasted(picture, target), (left, top))
        if labels is not None:
            text = _short(dataset.spec.classes[int(target)], font)
            draw.text((left + CELL / 2, top + CELL + 3), text, INK, font, anchor="ma")
    return canvas


def _chosen(labels: Tensor | None, length: int, count: int, classes: int) -> list[int]:
    """Return indices, by chance; where there are labels, one of each class in turn."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(key_of(0, 0) >> 1))
    if labels is None:
        return order[:count].tolist()
    each = max(count // classes, 1)
    members = [order[labels[order] == number][:each].tolist() for number in range(classes)]
    rounds = [member[r] for r in range(each) for member in members if r < len(member)]
    return rounds[:count]


def _sample(part: Split | Files, index: int) -> tuple[Tensor, Tensor]:
    if isinstance(part, Files):
        return Decoder(part, None)[index]
    return part.images[index], part.targets[index]


def _pasted(picture: Tensor, target: Tensor) -> Image.Image:
    """Return an image at the sheet's size, its mask laid over it in colour."""
    colour = picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture[:3]
    image = Image.fromarray(colour.permute(1, 2, 0).contiguous().numpy())
    if target.ndim == 2:
        palette = torch.full((256, 3), 128, dtype=torch.uint8)
        table = torch.tensor(COLOURS, dtype=torch.uint8)
        palette[1:255] = table[torch.arange(254) % len(COLOURS)]
        over = Image.fromarray(palette[target.long()].numpy())
        shown = Image.fromarray(((target > 0).to(torch.uint8) * 128).numpy())
        image.paste(over, mask=shown)
    enlarged = max(image.size) < CELL
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    scale = CELL / max(image.size)
    image = image.resize([max(round(side * scale), 1) for side in image.size], method)
    cell = Image.new("RGB", (CELL, CELL), GROUND)
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


def _short(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Cut a class's name to the width of an image."""
    text = text.replace("_", " ")
    while font.getlength(text) > CELL and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text
