"""The data of the report's interactive parts: thumbnails, predictions, maps, embedding.

The page loads no other files, so one JSON object in it holds all data. To keep the page small,
arrays are base64 of little-endian integers, and all thumbnails are in one WebP sprite sheet.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import ZooError
from cnn_core.plugins.discovery import describe, log
from cnn_core.specs import ModelSpec
from cnn_core.training import Predictions
from cnn_core.training.exported import require_layers
from cnn_viz.attribution.cam import cams_by_method
from cnn_viz.attribution.cam_scale import covered_box
from cnn_viz.network.graph import strides
from cnn_viz.results.embeddings import MIN_IMAGES, Embedding, evenly_spaced, neighbours_of
from cnn_viz.results.inputs import ViewInputs, round_robin_by_class
from cnn_viz.results.metrics import ConfusionTable, confusion_counts, confusion_table
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.embedding import COLOURS, ON_DARK, quality_text
from cnn_viz.views.features import stage_outputs
from cnn_viz.views.gradcam import require_spatial_maps

__all__ = ["EMPTY_EXPLORER", "INTERACTIVE_VIEWS", "cam_stages", "explorer_data"]

MAX_IMAGES = 10_000  # in the page; of a larger split, an evenly spaced subset
FEW_IMAGES = 1_000  # up to this number, thumbnails are large
THUMBNAIL, SMALL_THUMBNAIL = 32, 28  # side of a thumbnail in pixels, for few images and for more
CAM_SIDE = 112  # side in pixels of an image with a map
QUALITY = 50  # of WebP, from 0 to 100
MAX_MATRIX = 60  # classes; of a larger confusion matrix, only a part is displayed
NEIGHBOURS = 5  # at most this many for each image in the embedding
MAX_MAP_SIDE = 16  # largest height or width of a map, in positions
CAM_IMAGES = 12  # images with maps; at most half of them are mistakes
MAX_CLASSES = 10  # with more classes, maps are only for those that occur in these images
# With more classes, maps are only for each image's predicted and true class: one pass for each
# class would take minutes.
MAX_OFFERED = 100
INTERACTIVE_VIEWS = {  # static views that the page replaces with interactive parts
    "classification": ("curves", "confusion", "gradcam", "cam_methods", "embedding"),
    "segmentation": ("curves",),
    "multilabel": ("curves",),
}
EMPTY_EXPLORER: dict[str, Any] = dict.fromkeys(
    ("matrix", "table", "cams", "embedding", "explorer")
)


def explorer_data(view_inputs: ViewInputs) -> dict[str, Any]:
    """Return the data for the templates and the script of a classifier's report."""
    predictions = view_inputs.predictions
    table = confusion_table(confusion_counts(predictions), MAX_MATRIX)
    maps = _part_or_none("class activation maps", lambda: _cams(view_inputs))
    embedding = _part_or_none("embedding", lambda: _embedding(view_inputs.embedded))
    data = {**_images(predictions), "cams": maps, "embedding": embedding}
    return {
        "matrix": _cells(table),
        "table": table,
        "cams": maps,
        "embedding": embedding,
        "explorer": data,
    }


def _part_or_none(name: str, make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return a part of the page; if the network's code fails, log a warning and return None."""
    try:
        return make()
    except Exception as error:
        cause = error.message if isinstance(error, ZooError) else describe(error)
        log.warning("the page has no %s: %s", name, cause)
        return None


def _images(predictions: Predictions) -> dict[str, Any]:
    """Return thumbnails, classes and confidences of up to `MAX_IMAGES` images."""
    count = len(predictions.targets)
    selected = evenly_spaced(count, MAX_IMAGES)
    sheet, columns, tile = _sprite_sheet(
        predictions.images[selected], THUMBNAIL if count <= FEW_IMAGES else SMALL_THUMBNAIL
    )
    confidence = predictions.probabilities[selected].amax(1)
    return {
        "classes": list(predictions.classes),
        "indices": selected.tolist() if count > MAX_IMAGES else [],  # empty: all images, in order
        "sheet": sheet,
        "columns": columns,
        "tile": tile,
        "targets": _as_bytes(predictions.targets[selected], "<u2"),
        "predicted": _as_bytes(predictions.predicted[selected], "<u2"),
        # Rounded down, so that no confidence below 100 % is displayed as 100 %.
        "confidence": _as_bytes((confidence * 255).floor(), "u1"),
    }


def _sprite_sheet(images: Tensor, side: int, columns: int = 0) -> tuple[str, int, list[int]]:
    """Return a sprite sheet of images, N C h w in [0, 255]; its columns; and a tile's (h, w).

    The sheet is WebP in base64. The longer side of a tile is at most `side` pixels. By default
    there are as many rows as columns.
    """
    count, channels, height, width = images.shape
    scale = min(side / max(height, width), 1.0)
    size = [max(round(height * scale), 1), max(round(width * scale), 1)]
    if size != [height, width]:
        images = torch.cat(
            [
                # Antialiased, because thin strokes would vanish; in parts, to save memory.
                F.interpolate(part.float(), size, mode="bilinear", antialias=True)
                for part in images.split(256)
            ]
        )
    if channels not in (1, 3):
        images = images.float().mean(1, keepdim=True)
    # A square, because WebP allows 16,383 pixels per side: a row of 10,000 would not fit.
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    padded = images.new_zeros(rows * columns, *images.shape[1:], dtype=torch.uint8)
    padded[:count] = images.round().clamp(0, 255).to(torch.uint8)
    tiled = padded.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)  # rows h columns w C
    pixels = tiled.reshape(rows * size[0], columns * size[1], -1).numpy()
    return _webp(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), columns, size


def _webp(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(file.getvalue()).decode()


def _as_bytes(values: Any, kind: str) -> str:
    """Encode integers in base64 as the little-endian dtype `kind`, "<u2" or "u1"."""
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode()


def _cells(table: ConfusionTable) -> list[list[dict[str, Any]]]:
    """Return the cells of the confusion matrix, row by row; `predicted` is None for the others."""
    columns = [*table.columns, *[None] * table.others]
    return [
        [
            {
                "true": true,
                "predicted": predicted,
                "images": images,
                "share": images / total if total else 0.0,
            }
            for predicted, images in zip(columns, row, strict=True)
        ]
        for true, row, total in zip(
            table.rows, table.counts.tolist(), table.counts.sum(1).tolist(), strict=True
        )
    ]


def _cams(view_inputs: ViewInputs) -> dict[str, Any]:
    """Return maps of confident mistakes and of correct images, for every offered class.

    With very many classes none is offered: the first half of the maps is then for the predicted
    classes, the second for the true ones.
    """
    require_layers(view_inputs.weights)
    predictions, preprocessing = view_inputs.predictions, view_inputs.weights.preprocessing
    selected = _images_to_explain(predictions)
    images = view_inputs.inputs(selected)
    thumbnails = (preprocessing.denormalise(images).cpu() * 255).round().to(torch.uint8)
    sheet, _, size = _sprite_sheet(thumbnails, CAM_SIDE, columns=len(selected))
    # An integer scale keeps the pixels of small images sharp.
    scale = math.ceil(CAM_SIDE / max(size))
    predicted, targets = predictions.predicted[selected], predictions.targets[selected]
    offered = _offered_classes(len(predictions.classes), predicted, targets)
    explained = [[k] * len(selected) for k in offered] or [predicted.tolist(), targets.tolist()]
    stages = cam_stages(view_inputs.model, view_inputs.spec, images[:1])
    stride_of, (height, width) = strides(view_inputs.weights), images.shape[-2:]
    maps = _raw_maps(view_inputs.model, images, stages, explained)
    shapes = {stage: (raw.shape[1], raw.shape[2]) for stage, raw in maps["Grad-CAM"].items()}
    confidences = predictions.probabilities[selected].amax(1).tolist()
    rows = zip(selected, confidences, predicted.tolist(), targets.tolist(), strict=True)
    return {
        "sheet": sheet,
        "size": size,
        "drawn": [scale * side for side in size],
        "items": [
            dict(zip(("index", "confidence", "predicted", "target"), row, strict=True))
            for row in rows
        ],
        "offered": offered,
        "lists": _lists(offered, predicted.tolist(), targets.tolist()),
        "maps": {
            name: {stage: _pack_sixteenths(raw) for stage, raw in by_stage.items()}
            for name, by_stage in maps.items()
        },
        "shapes": {stage: list(shape) for stage, shape in shapes.items()},
        "boxes": {
            stage: _box(shape, (height, width), stride_of.get(stage, 0), scale * size[1] / width)
            for stage, shape in shapes.items()
        },
    }


def _lists(offered: list[int], predicted: list[int], targets: list[int]) -> list[dict[str, int]]:
    """Return where among the maps each image's predicted and true class are."""
    if not offered:
        return [{"predicted": 0, "target": 1}] * len(predicted)
    return [
        {"predicted": offered.index(one), "target": offered.index(other)}
        for one, other in zip(predicted, targets, strict=True)
    ]


def _raw_maps(
    model: nn.Module, images: Tensor, stages: Sequence[str], explained: Sequence[list[int]]
) -> dict[str, dict[str, Tensor]]:
    """Return signed maps by method and stage: N h w for each list of classes, joined."""
    by_class = [
        cams_by_method(model, images, stages, classes, tuple(NAMES)) for classes in explained
    ]
    require_spatial_maps(by_class[0]["grad-cam"][stages[0]], stages[0])
    return {
        name: {
            stage: torch.cat([cams[method][stage].raw.cpu() for cams in by_class])
            for stage in stages
        }
        for method, name in NAMES.items()
    }


def _box(shape: tuple[int, int], size: tuple[int, int], stride: int, scale: float) -> list[float]:
    """Return left, top, width and height of a map on a canvas `scale` times the image's size."""
    top, left, height, width = covered_box(shape, size, stride)
    return [scale * value for value in (left, top, width, height)]


def _offered_classes(count: int, *classes: Tensor) -> list[int]:
    """Return the classes to choose from: all if they are few, else those in `classes` or none."""
    if count > MAX_OFFERED:
        return []
    return list(range(count)) if count <= MAX_CLASSES else torch.cat(classes).unique().tolist()


def cam_stages(model: nn.Module, spec: ModelSpec, images: Tensor) -> list[str]:
    """Return the CAM stage, and up to two earlier stages with maps of at most 16 x 16."""
    outputs, _ = stage_outputs(model, images, spec.stages)
    before = spec.stages[: spec.stages.index(spec.cam_stage)] if spec.cam_stage in outputs else ()
    candidates = [
        stage
        for stage in before
        if stage in outputs
        and outputs[stage].ndim == 3
        and 1 < outputs[stage].shape[1] <= MAX_MAP_SIDE
        and 1 < outputs[stage].shape[2] <= MAX_MAP_SIDE
    ]
    return [spec.cam_stage, *candidates[:-3:-1]]


def _embedding(embedded: Embedding) -> dict[str, Any] | None:
    """Return the points of each method, and the nearest neighbours of each image by features.

    Coordinates from 0 to 65535 span a square. Return None if the split is too small.
    """
    if len(embedded.features) < MIN_IMAGES:
        return None
    methods = {}
    for method in embedded.methods_to_draw():
        placement = embedded.placement(method)
        low, high = placement.xy.min(0), placement.xy.max(0)
        middle, span = (low + high) / 2, max(float((high - low).max()), 1e-9)
        positions = (0.94 * (placement.xy - middle) / span + 0.5).clip(0, 1)  # with a margin
        methods[method] = {
            "placed": _as_bytes(placement.indices, "<u2"),
            "xy": _as_bytes((positions * 65535).round(), "<u2"),
            "note": f"{len(placement.xy):,} images: {quality_text(placement.quality)}",
        }
    count = min(NEIGHBOURS, len(embedded.features) - 1)
    neighbours = neighbours_of(np.asarray(embedded.features), count)
    return {
        "about": embedded.description,
        "methods": methods,
        "neighbours": _as_bytes(neighbours, "<u2"),
        "around": count,
        "colours": [(colour, ON_DARK.get(colour, colour)) for colour in COLOURS],
    }


def _images_to_explain(predictions: Predictions) -> list[int]:
    """Return the indices of images to explain: the most confident mistakes, then correct ones."""
    hit = predictions.predicted == predictions.targets
    wrong, correct = (~hit).nonzero().flatten(), hit.nonzero().flatten()
    confidence = predictions.probabilities.amax(1)[wrong]
    worst = wrong[confidence.argsort(descending=True, stable=True)][: CAM_IMAGES // 2].tolist()
    others = round_robin_by_class(predictions.targets[correct].tolist(), CAM_IMAGES - len(worst))
    return worst + correct[others].tolist()


def _pack_sixteenths(raw: Tensor) -> str:
    """Pack the positive part of maps, N h w, as 4-bit values, two per byte, in base64.

    15 is the maximum of the map. The first value is in the lower four bits; every map starts at a
    new byte. An empty map is all 0. For an overlay, 16 levels are enough, at half the size of 256.
    """
    maps = raw.relu().flatten(1)
    highest = maps.amax(1, keepdim=True)
    levels = (torch.where(highest > 0, maps / highest, 0.0) * 15).round().to(torch.uint8)
    pairs = F.pad(levels, (0, levels.shape[1] % 2)).unflatten(1, (-1, 2))
    return _as_bytes(pairs[..., 0] | pairs[..., 1] << 4, "u1")
