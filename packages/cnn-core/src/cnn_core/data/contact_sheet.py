"""A contact sheet of samples: images with class names below them, or with masks overlaid."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.counter_rng import key_of
from cnn_core.data.dataset import Dataset
from cnn_core.data.decoder import Decoder
from cnn_core.data.palette import IGNORED_COLOUR, background_class, class_colours
from cnn_core.data.splits import Files, Split
from cnn_core.specs import DatasetSpec
from cnn_core.text import printable

__all__ = ["draw_sheet"]

CELL = 112  # pixels; the side of the square that an image is fitted into
LABEL = 20  # pixels below the image, for the class name
GAP = 8
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
ROW = 18  # pixels of a line of the legend
SWATCH = 12
MAX_LEGEND = 40  # classes
LEGEND_COLUMNS = 6
OPACITY = 128


def draw_sheet(dataset: Dataset, split: str, columns: int = 10, rows: int = 6) -> Image.Image:
    """Draw a random but fixed choice of a split's samples, about equally many of each class.

    Masks are overlaid in the colours of the classes, with a legend below; the background has no
    overlay, and ignored pixels are grey.
    """
    part = dataset.split(split)
    labels = part.targets if isinstance(part.targets, Tensor) and part.targets.ndim == 1 else None
    chosen = _choose(labels, len(part), columns * rows, len(dataset.spec.classes))
    rows = -(-len(chosen) // columns)
    width, height = columns * (CELL + GAP) + GAP, rows * (CELL + LABEL + GAP) + GAP
    spec, masks = dataset.spec, dataset.spec.task == "segmentation"
    legend = -(-min(len(spec.classes), MAX_LEGEND) // LEGEND_COLUMNS) * ROW + GAP if masks else 0
    palette = _palette(spec) if masks else None
    canvas = Image.new("RGB", (width, height + legend), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, index in enumerate(chosen):
        image, target = _sample(part, index)
        left = GAP + number % columns * (CELL + GAP)
        top = GAP + number // columns * (CELL + LABEL + GAP)
        canvas.paste(_cell(image, target, palette), (left, top))
        if labels is not None:
            text = _shorten(dataset.spec.classes[int(target)], font)
            draw.text((left + CELL / 2, top + CELL + 3), text, INK, font, anchor="ma")
    if masks:
        _legend(draw, spec, height, width // LEGEND_COLUMNS)
    return canvas


def _palette(spec: DatasetSpec) -> Tensor:
    """Return the colour of each class number and of ignored pixels, uint8 256 4, with opacity."""
    background = background_class(spec.classes, spec.background)
    table = torch.tensor([[*IGNORED_COLOUR, OPACITY]] * 256, dtype=torch.uint8)
    for number, colour in enumerate(class_colours(spec.classes, spec.colours, background)):
        opacity = 0 if number == background else OPACITY
        table[number] = torch.tensor([*colour, opacity], dtype=torch.uint8)
    return table


def _legend(draw: ImageDraw.ImageDraw, spec: DatasetSpec, top: int, step: int) -> None:
    """Draw the names of the classes beside their colours, in columns."""
    background = background_class(spec.classes, spec.background)
    colours = class_colours(spec.classes, spec.colours, background)
    font = ImageFont.load_default(12)
    for number, name in enumerate(spec.classes[:MAX_LEGEND]):
        x, y = GAP + number % LEGEND_COLUMNS * step, top + number // LEGEND_COLUMNS * ROW
        box = (x, y, x + SWATCH, y + SWATCH)
        draw.rectangle(box, fill=None if number == background else colours[number], outline=INK)
        more = number == MAX_LEGEND - 1 and len(spec.classes) > MAX_LEGEND
        text = f"… {len(spec.classes) - number} more" if more else _shorten(printable(name), font)
        draw.text((x + SWATCH + 4, y - 1), text, INK, font)


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


def _cell(pixels: Tensor, target: Tensor, palette: Tensor | None) -> Image.Image:
    """Return an image scaled to fit a cell; a mask is overlaid in colour."""
    # Of images that are neither grey nor RGB, the first or the first three channels are shown.
    rgb = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    image = Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy())
    if palette is not None:
        tinted = palette[target.long().clamp(max=IGNORED)]
        overlay = Image.fromarray(tinted[..., :3].contiguous().numpy())
        image.paste(overlay, mask=Image.fromarray(tinted[..., 3].contiguous().numpy()))
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
